"""All benchmarks one after the other, then the goals and the charts.

python benchmarks/everything.py
python benchmarks/everything.py --full --results benchmarks/results --plots docs/images
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from peers import CACHE
from plots import BENCHMARKS

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Run each in a process of its own; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the full sizes, which take hours; a quick look by default")
    parser.add_argument("--results", type=Path, default=CACHE / "results", help="default: %(default)s")
    parser.add_argument("--plots", type=Path, default=CACHE / "plots", help="default: %(default)s")
    given = parser.parse_args()
    size, results = ["--full"] if given.full else [], ["--results", str(given.results)]
    failed = [name for name in BENCHMARKS if not run(name, *size, *results)]
    run("reached", *results)
    run("plots", *results, "--into", str(given.plots))
    if failed:
        print(f"Failed: {', '.join(failed)}")
    return 1 if failed else 0


def run(name: str, *options: str) -> bool:
    """Whether a script succeeded."""
    print(f"\n== {name}", flush=True)
    return subprocess.run([sys.executable, str(HERE / f"{name}.py"), *options], check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
