"""What a command that a test typed left behind."""

from __future__ import annotations

import json
from typing import Any, NamedTuple


class Shown(NamedTuple):
    """Its exit status, and what it printed."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)
