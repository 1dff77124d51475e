"""The test's end of `steered_flow`: rows, parameters, what to do next, and which lines were executed."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FLOW = f"{Path(__file__).with_name('steered_flow.py')}:steered"


@dataclass(frozen=True)
class Steering:
    """One data file of numbered rows and the folder through which its lines are steered."""

    folder: Path
    data: Path
    lines: int

    @classmethod
    def over(cls, folder: Path, lines: int) -> Steering:
        """Make both, below `folder`."""
        data = folder / "data.jsonl"
        data.write_text("".join(json.dumps({"number": number}) + "\n" for number in range(lines)))
        return cls(folder, data, lines)

    @property
    def inputs_mapping(self) -> dict[str, str]:
        """For each run of this data; a change in it would change every line's inputs."""
        return {"number": "${data.number}", "folder": str(self.folder)}

    def parameters(self, **more: Any) -> dict[str, Any]:
        """Those of `batch_run`, for a deployment."""
        return {"flow": FLOW, "data": str(self.data), "inputs_mapping": self.inputs_mapping, "worker_count": 2, **more}

    def fail(self, number: int | None) -> None:
        """Let one line fail, or none any more."""
        self._tell("fails", number)

    def wait_from(self, number: int | None) -> None:
        """Let lines from a number on wait, or none any more."""
        self._tell("waits_from", number)

    def executed(self) -> Counter[int]:
        """How many times each line was begun."""
        witness = self.folder / "witness"
        return Counter(map(int, witness.read_text().split())) if witness.exists() else Counter()

    def _tell(self, name: str, number: int | None) -> None:
        if number is None:
            (self.folder / name).unlink(missing_ok=True)
        else:
            # Whole or not at all: a line may read it at any moment.
            (self.folder / f".{name}").write_text(str(number))
            (self.folder / f".{name}").replace(self.folder / name)
