"""Puts deliberate bugs into storage, lease and resume, one at a time, and shows that each makes a test fail.

    python tests/faults/mutations.py [NAME …]

The package and its tests are copied to a temporary folder, so this checkout stays as it is. Exit status: 0 if each bug makes
a test fail, 1 if one survives or the tests fail without a bug. It takes some minutes; `test_mutations.py` checks in a moment
that each bug still fits the code.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT = Path(__file__).parents[2]
PACKAGE = "prefect_batchflow"
LIMIT_SEC = 500.0
STORAGE: Final = ("tests/storage",)


@dataclass(frozen=True)
class Mutation:
    """A bug: in a file of the package, the text `old`, which is there once, becomes `new`."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...] = STORAGE
    """Where pytest looks. Marked tests run too, and the first failure ends the search."""


MUTATIONS: Final = {
    "acknowledge before the write": Mutation(
        "storage/writer.py", "        await asyncio.shield(written)\n", "        written.done()\n"
    ),
    "count a line before the write": Mutation(
        "storage/writer.py",
        "            await self._records.append(outcomes)\n",
        "            self._kept(outcomes)\n            await self._records.append(outcomes)\n",
    ),
    "do not read a record back": Mutation(
        "storage/records.py",
        "            await read_sound(self._files, key, check)\n        self.expect",
        "        self.expect",
    ),
    "swallow a read error as absent": Mutation(
        "storage/records.py",
        "            if not isinstance(error, RecordCorruptError):\n                raise error\n",
        "            if isinstance(error, RecordCorruptError):\n                pass\n",
    ),
    "skip the checksum": Mutation("storage/segments.py", " or _checksum(header, body) != checksum:", ":"),
    "take a segment of another run": Mutation(
        "storage/records.py",
        "    return segment.run == run or (",
        "    return True or (",
    ),
    "never refuse a lease": Mutation(
        "storage/lease.py",
        "        number = await self._refuse_living()\n",
        "        number = (await self._look()).number\n",
        ("tests/storage/test_lease.py",),
    ),
    "take over a fresh lease": Mutation(
        "storage/lease.py",
        '    return bool(lease["released"]) or lease["owner"] in _gone or is_dead(lease)\n',
        "    return True\n",
        ("tests/storage/test_lease.py",),
    ),
    "let a late writer write": Mutation(
        "storage/lease.py",
        "        if lost is not None:\n            self._lose(lost)\n            raise lost\n",
        "",
        ("tests/storage/test_lease.py",),
    ),
    "rerun completed lines": Mutation(
        "storage/index.py",
        '        return ended if ended is not None and ended.status == "Completed" else None\n',
        "        return None\n",
        ("tests/storage", "tests/fundamentals"),
    ),
    "ignore the input hash": Mutation(
        "storage/index.py", " or stored.input_hash != input_hash:", ":", ("tests/storage", "tests/test_engine.py")
    ),
    "lose the last segment": Mutation(
        "storage/records.py",
        "        return [segment for segment in segments if segment.session >= self._since]\n",
        "        return [segment for segment in segments if segment.session >= self._since][:-1]\n",
    ),
    "count a line twice": Mutation(
        "results/tally.py",
        "        self._lines[counted_as] += 1\n",
        "        self._lines[counted_as] += 2 if self._lines[counted_as] == 1 else 1\n",
        ("tests/results", "tests/fundamentals"),
    ),
    "leave a line out of the outputs": Mutation(
        "run/ending.py",
        "+= 1\n                yield record\n",
        "+= 1\n                if stored.receipt.line_number != 1:\n                    yield record\n",
        ("tests/fundamentals", "tests/storage"),
    ),
    "write outputs before all records are read": Mutation(
        "run/ending.py",
        "        if not is_right:\n",
        "        if is_right is None:\n",
        ("tests/run", "tests/storage", "tests/faults"),
    ),
    "do not flush a file to the disk": Mutation(
        "storage/files.py", "            os.fsync(file.fileno())\n", "            file.flush()\n"
    ),
}


def run_tests(copy: Path, tests: tuple[str, ...]) -> tuple[bool, str]:
    """Whether tests pass in a copy, and the last lines that pytest printed."""
    env = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:randomly", "-p", "no:cacheprovider"]
    marked = "not s3 and not cluster and not node and not browser and not promptflow and not server"
    done = subprocess.run(
        [*command, "-m", marked, *tests],
        cwd=copy,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_SEC,
    )
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest ended with status {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return done.returncode == 0, failed[0] if failed else done.stdout.splitlines()[-1]


def copied(folder: str) -> Path:
    """A copy of what the tests need."""
    copy = Path(folder) / "checkout"
    for name in (PACKAGE, "tests", "flows", "deployments", "benchmarks", "docs", ".ci"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
    for file in ROOT.iterdir():
        if file.is_file():
            shutil.copy2(file, copy)
    return copy


def main() -> int:
    """Try each bug, or those that are named, and print which test each of them fails."""
    names = sys.argv[1:] or list(MUTATIONS)
    if unknown := [name for name in names if name not in MUTATIONS]:
        print(f"There is no bug called {unknown[0]!r}; there are: {', '.join(MUTATIONS)}", file=sys.stderr)
        return 2
    survived = []
    with tempfile.TemporaryDirectory(prefix="batchflow-mutations-") as folder:
        copy = copied(folder)
        for tests in dict.fromkeys(MUTATIONS[name].tests for name in names):
            passed, last = run_tests(copy, tests)
            print(f"without a bug, {' '.join(tests)}: {last}", flush=True)
            if not passed:
                return 1
        for name in names:
            mutation = MUTATIONS[name]
            file = copy / PACKAGE / mutation.file
            text = file.read_text()
            file.write_text(text.replace(mutation.old, mutation.new))
            passed, last = run_tests(copy, mutation.tests)
            file.write_text(text)
            print(f"{'SURVIVED' if passed else 'caught'}: {name}: {last}", flush=True)
            survived += [name] if passed else []
    print(f"{len(names) - len(survived)} of {len(names)} bugs make a test fail")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
