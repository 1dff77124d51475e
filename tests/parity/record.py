"""Record what promptflow makes of the parity cases: `recordings/<area>.json`, which `test_parity.py` replays.

    python tests/parity/record.py [--only CASE …] [--area AREA …] [--missing] [--python promptflow's interpreter]

Without `--python` an environment with promptflow is made in `.promptflow-env/` beside this file, once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

from declared import Case, all_cases
from echo_model import running_model

HERE = Path(__file__).parent
RECORDINGS = HERE / "recordings"
ENVIRONMENT = HERE / ".promptflow-env"
REQUIREMENTS = ["promptflow-devkit==1.18.5", "promptflow-tools==1.6.0"]


def interpreter() -> Path:
    """promptflow's interpreter, of an environment that is made if it is not there."""
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        venv.create(ENVIRONMENT, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *REQUIREMENTS], check=True)
    return python


def versions(python: Path) -> dict[str, str]:
    """What the recordings say they were made with."""
    ask = (
        "import json; from importlib.metadata import version; "
        "print(json.dumps({n: version(n) for n in ('promptflow-devkit', 'promptflow-tools', 'openai', 'pandas')}))"
    )
    return dict(json.loads(subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout))


def run(python: Path, names: list[str]) -> dict[str, Any]:
    """Have promptflow run the cases."""
    with running_model() as address, tempfile.TemporaryDirectory() as folder:
        results = Path(folder, "results.json")
        subprocess.run([python, "-B", HERE / "promptflow_side.py", results, address, *names], check=True, cwd=folder)
        return dict(json.loads(results.read_text()))


def recordings(area: str) -> dict[str, Any]:
    """What is recorded of an area: `{"versions", "cases": {name: {"case": digest, "result"}}}`."""
    path = RECORDINGS / f"{area}.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {"versions": {}, "cases": {}}


def is_recorded(case: Case) -> bool:
    """Whether there is a recording of the case as it is declared now."""
    return bool(recordings(case.area)["cases"].get(case.name, {}).get("case") == case.digest())


def write(area: str, cases: dict[str, Case], results: dict[str, Any], made_with: dict[str, str]) -> None:
    """Write an area's file: the new results, and those it had of cases that are still declared."""
    kept = {name: told for name, told in recordings(area)["cases"].items() if name in cases}
    for name, result in results.items():
        if result is not None:
            kept[name] = {"case": cases[name].digest(), "result": result}
    told = {"versions": made_with, "cases": dict(sorted(kept.items()))}
    RECORDINGS.mkdir(exist_ok=True)
    text = json.dumps(told, indent=1, sort_keys=True, ensure_ascii=False)
    (RECORDINGS / f"{area}.json").write_text(text + "\n", encoding="utf-8")


def main() -> int:
    """Record what the command line asks for; 1 when a case gave no result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="CASE")
    parser.add_argument("--area", nargs="+", default=[])
    parser.add_argument("--missing", action="store_true", help="cases without a recording, or changed since")
    parser.add_argument("--python", type=Path, help="an interpreter that has " + " and ".join(REQUIREMENTS))
    given = parser.parse_args()
    cases = all_cases()
    chosen = {
        name: case
        for name, case in cases.items()
        if (not given.only or name in given.only)
        and (not given.area or case.area in given.area)
        and not (given.missing and is_recorded(case))
    }
    if not chosen:
        print("There is nothing to record.")  # noqa: T201
        return 0
    python = given.python or interpreter()
    made_with = versions(python)
    results = run(python, list(chosen))
    for area in sorted({case.area for case in chosen.values()}):
        of_area = {name: case for name, case in cases.items() if case.area == area}
        write(area, of_area, {name: told for name, told in results.items() if name in of_area}, made_with)
    lost = [name for name, result in results.items() if result is None]
    print(f"{len(results) - len(lost)} cases recorded" + (f"; no result: {', '.join(lost)}" if lost else ""))  # noqa: T201
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
