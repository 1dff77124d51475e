"""A hypothesis state machine: a run that is started, killed, canceled, changed, damaged and copied in any order.

The model is what the run's folder had before each start. After each start, all invariants.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kill_points
import pytest
from forked_runs import ForkedRuns
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from invariants import MARK, Watch, read_manifests, read_stored

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]

REFUSED = 2
CANCELED = 130
FLOW = """
import os
from pathlib import Path

def main(n: int) -> dict:
    fd = os.open(Path(__file__).with_name("witness"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{n}\\n".encode())
    os.close(fd)
    return {"square": n * n}
"""
POINTS = [
    point
    for point in kill_points.ALL
    if not any(word in point for word in ("image", "copied", "replaced", "aggregation", "table", "the run"))
]

kills = st.one_of(st.none(), st.tuples(st.sampled_from(POINTS), st.integers(1, 3)))
places = st.integers(0, 1_000)
keys = st.integers(0, 12)


def _print(manifest: dict[str, Any]) -> str:
    return str(manifest["fingerprints"]["data:data"])


def machine_of(forked: ForkedRuns) -> type[RuleBasedStateMachine]:
    class RunMachine(RuleBasedStateMachine):
        """One run. Its storage moves when a copy goes on in place of it."""

        def __init__(self) -> None:
            super().__init__()
            self.folder = Path(tempfile.mkdtemp(prefix="batchflow-machine-"))
            (self.folder / "squares.py").write_text(FLOW)
            self.rows = list(range(8))
            self.rows_by_print: dict[str, list[int]] = {}
            """The data that each fingerprint in a manifest is of."""
            self.copies = 0
            self.watch = Watch(
                self.folder / "runs" / "r", {}, self.folder / "witness", in_flight=100, mark=str(self.folder),
                output_dir=self.folder / "outputs",
            )  # fmt: skip

        def teardown(self) -> None:
            shutil.rmtree(self.folder)

        # --- commands --------------------------------------------------------------------------------------------

        def batchflow(self, *words: str, kill: tuple[str, int] | None = None, signal: str = "SIGKILL") -> int | None:
            log = self.folder / "log"
            log.unlink(missing_ok=True)
            status = forked.run(
                [*words, "--storage", str(self.watch.run.parent)],
                log,
                environment={MARK: self.watch.mark},
                kill_at=kill or ("", 0),
                signal=signal,
            )
            note(f"{' '.join(words)}: {'killed' if status is None else status}")
            return status

        def start(self, *options: str, on_change: str, asked_again: dict[int, int] | None = None, **facts: Any) -> None:
            data = self.folder / "rows.jsonl"
            data.write_text("".join(json.dumps({"n": n}) + "\n" for n in self.rows))
            self.watch.lines = {number: {"n": n} for number, n in enumerate(self.rows)}
            before = read_stored(self.watch.run)
            is_changed = bool(before.manifest) and self.rows_by_print[_print(before.manifest)] != self.rows
            is_refused = is_changed and on_change == "refuse"
            self.watch.begin()
            status = self.batchflow(
                "run", f"{self.folder / 'squares.py'}:main", "--data", str(data), "--run-id", "r", "--workers", "1",
                "--granularity", "line", "--output-dir", str(self.folder / "outputs"), "--on-change", on_change, *options,
                **facts,
            )  # fmt: skip
            for manifest in read_manifests(self.watch.run):
                self.rows_by_print.setdefault(_print(manifest), list(self.rows))
            try:
                self.watch.check(
                    None if status == CANCELED else status,
                    asked_again=asked_again,
                    refused=is_refused,
                    forgets=is_changed and on_change == "rerun",
                )
                assert not is_refused or status in (REFUSED, None, CANCELED)
            except AssertionError:
                note((self.folder / "log").read_text())
                raise

        @rule(kill=kills, on_change=st.sampled_from(["reuse", "reuse", "reuse", "refuse", "rerun"]))
        def starts(self, kill: tuple[str, int] | None, on_change: str) -> None:
            self.start(on_change=on_change, kill=kill)

        @rule(kill=kills.filter(bool), on_change=st.sampled_from(["reuse", "refuse"]))
        def starts_and_is_canceled(self, kill: tuple[str, int] | None, on_change: str) -> None:
            self.start(on_change=on_change, kill=kill, signal="SIGINT")

        @precondition(lambda self: bool(read_stored(self.watch.run).manifest))
        @rule(kill=kills, numbers=st.sets(places, min_size=1, max_size=3))
        def runs_lines_again(self, kill: tuple[str, int] | None, numbers: set[int]) -> None:
            chosen = {number % len(self.rows) for number in numbers}
            again = Counter(self.rows[number] for number in chosen)
            self.start(
                "--rerun-lines", ",".join(map(str, sorted(chosen))), on_change="reuse", asked_again=again, kill=kill
            )

        @precondition(lambda self: (self.watch.run / "manifest.json").exists())
        @rule(kill=kills)
        def is_compacted(self, kill: tuple[str, int] | None) -> None:
            stored = read_stored(self.watch.run)
            status = self.batchflow("compact", "r", kill=kill)
            now = read_stored(self.watch.run)
            assert now.kept() == stored.kept()
            assert status in (0, None) or stored.unsound or not stored.manifest

        @precondition(lambda self: (self.watch.run / "manifest.json").exists())
        @rule(kill=kills)
        def goes_on_as_a_copy(self, kill: tuple[str, int] | None) -> None:
            self.copies += 1
            target = self.folder / f"copy{self.copies}"
            if self.batchflow("copy", "r", str(target), kill=kill) == 0:
                assert read_stored(target / "r").kept() == read_stored(self.watch.run).kept()
                self.watch.run = target / "r"

        # --- changes of the data ---------------------------------------------------------------------------------

        @rule(place=places, key=keys)
        def row_is_inserted(self, place: int, key: int) -> None:
            self.rows.insert(place % (len(self.rows) + 1), key)

        @precondition(lambda self: len(self.rows) > 1)
        @rule(place=places)
        def row_is_removed(self, place: int) -> None:
            self.rows.pop(place % len(self.rows))

        @rule(place=places, key=keys)
        def row_is_edited(self, place: int, key: int) -> None:
            self.rows[place % len(self.rows)] = key

        @rule(place=places)
        def row_is_written_twice(self, place: int) -> None:
            self.rows.append(self.rows[place % len(self.rows)])

        @rule(order=st.randoms(use_true_random=False))
        def rows_are_shuffled(self, order: Any) -> None:
            order.shuffle(self.rows)

        # --- damage ----------------------------------------------------------------------------------------------

        def segments(self) -> list[Path]:
            return sorted((self.watch.run / "records").glob("[!.]*.jsonl"))

        @precondition(lambda self: self.segments())
        @rule(place=places, how=st.sampled_from(["cut", "flip", "empty", "delete"]), byte=places)
        def segment_is_damaged(self, place: int, how: str, byte: int) -> None:
            segments = self.segments()
            path = segments[place % len(segments)]
            content = path.read_bytes()
            at = byte * 7 % max(1, len(content))
            flipped = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :] if content else b""
            if how == "delete":
                path.unlink()
            else:
                path.write_bytes({"cut": content[:at], "flip": flipped, "empty": b""}[how])

        @precondition(lambda self: (self.watch.run / "manifest.json").exists())
        @rule(how=st.sampled_from(["cut", "delete"]))
        def manifest_is_damaged(self, how: str) -> None:
            path = self.watch.run / "manifest.json"
            if how == "delete":
                path.unlink()
            else:
                path.write_bytes(path.read_bytes()[:-30])

        @rule(name=st.sampled_from(["outputs.jsonl", "batch_result.json", "failed.jsonl", "lock", "control.json"]))
        def file_is_lost(self, name: str) -> None:
            (self.watch.run / name).unlink(missing_ok=True)

    return RunMachine


@pytest.fixture(scope="module")
def forked(prefect_server: None) -> Iterator[ForkedRuns]:
    with ForkedRuns() as runs:
        yield runs


def test_whatever_happens_to_a_run_nothing_is_lost_and_nothing_runs_twice(forked: ForkedRuns) -> None:
    examples = int(os.environ.get("BATCHFLOW_TEST_MACHINES", "6"))
    run_state_machine_as_test(
        machine_of(forked),
        settings=settings(
            max_examples=examples,
            stateful_step_count=14,
            deadline=None,
            print_blob=True,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink] if examples > 20 else [Phase.generate],
        ),
    )
