"""Packages with tools as pip leaves them: a module and a dist-info folder in a folder on `sys.path`."""

from __future__ import annotations

import json
from textwrap import dedent
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


def install_package(site: Path, name: str, source: str, tools: dict[str, dict[str, Any]] | str) -> None:
    """Put a package below `site`.

    Args:
        site: A folder on `sys.path`.
        name: The module's; the distribution is called the same with dashes.
        source: Of the module.
        tools: What its entry point gives; a text is the source of that function's body.
    """
    package = site / name
    package.mkdir(parents=True)
    body = tools if isinstance(tools, str) else f"return json.loads({json.dumps(tools)!r})"
    (package / "__init__.py").write_text("")
    (package / "tools.py").write_text(dedent(source))
    (package / "listing.py").write_text(f"import json\ndef list_tools():\n    {body}\n")
    info = site / f"{name}-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text(f"[package_tools]\nlisting = {name}.listing:list_tools\n")
