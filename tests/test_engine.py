"""`BatchEngine`: promptflow's signature, and a caller who finds everything as it was."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest
from line_functions import double, halve
from waiting import wait_until

from prefect_batchflow import (
    AbstractBatchRunStorage,
    AbstractExecutorProxy,
    BatchEngine,
    FlowRunInfo,
    RunInfo,
    Status,
)
from prefect_batchflow import flows as flows_module
from prefect_batchflow.exceptions import (
    FlowNotFoundError,
    InputMappingError,
    InvalidOptionError,
    InvalidRunIdError,
    InvalidUserData,
    RunChangedError,
    RunInUseError,
    RunNotFoundError,
    StorageError,
    UnexpectedError,
    UnsupportedFeatureError,
)
from prefect_batchflow.run.handle import current_live_run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

pytestmark = pytest.mark.usefixtures("prefect_server")


class KeptByNobody:
    """A storage whose calls nothing would await."""

    def persist_node_run(self, run_info: RunInfo) -> None: ...

    async def persist_flow_run(self, run_info: FlowRunInfo) -> None: ...


class MemoryStorage(AbstractBatchRunStorage):
    """A storage as a user would bring one."""

    def __init__(self) -> None:
        self.flow_runs: dict[int, FlowRunInfo] = {}
        self.node_runs: dict[int | None, list[RunInfo]] = {}

    def persist_node_run(self, run_info: RunInfo) -> None:
        self.node_runs.setdefault(run_info.index, []).append(run_info)

    def persist_flow_run(self, run_info: FlowRunInfo) -> None:
        assert run_info.index is not None
        self.flow_runs[run_info.index] = run_info

    def load_node_run_info_for_line(self, line_number: int) -> Sequence[RunInfo]:
        return self.node_runs.get(line_number, [])

    def load_flow_run_info(self, line_number: int) -> FlowRunInfo | None:
        return self.flow_runs.get(line_number)


def records_in(run: Path) -> list[dict[str, Any]]:
    """The records of a run, without the headers of their files."""
    texts = [path.read_text() for path in (run / "records").iterdir()]
    return [json.loads(line) for text in texts for line in text.splitlines()[1:]]


@pytest.fixture
def dag(tmp_path: Path) -> Path:
    """A DAG flow that writes its line to a witness file, and sums up."""
    folder = tmp_path / "dag"
    folder.mkdir()
    (folder / "flow.dag.yaml").write_text(
        "inputs:\n  n: {type: int}\noutputs:\n  twice: {reference: '${twice.output}'}\nnodes:\n"
        "- {name: twice, type: python, source: {type: code, path: twice.py}, inputs: {n: '${inputs.n}'}}\n"
        "- {name: total, type: python, aggregation: true, source: {type: code, path: total.py},\n"
        "   inputs: {twice: '${twice.output}', n: '${inputs.n}'}}\n"
    )
    (folder / "twice.py").write_text(
        "from promptflow.core import tool\n@tool\ndef twice(n: int) -> int:\n"
        "    open('witness', 'a').write(f'{n}\\n')\n    return n * 2\n"
    )
    (folder / "total.py").write_text(
        "from promptflow.core import tool, log_metric\n@tool\ndef total(twice: list, n: list):\n"
        "    log_metric('total', sum(twice))\n    log_metric('pairs_fit', all(t == 2 * v for t, v in zip(twice, n)))\n"
        "    return sum(twice)\n"
    )
    return folder


def executed(folder: Path) -> list[int]:
    witness = folder / "witness"
    return sorted(map(int, witness.read_text().split())) if witness.exists() else []


def test_the_caller_finds_everything_as_it_was(storage: Path, write_rows: Callable[..., Path]) -> None:
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def state() -> tuple[Any, ...]:
        return (
            Path.cwd(),
            list(sys.path),
            [signal.getsignal(s) for s in signals],
            dict(os.environ),
            # Prefect's own come and go with what it has to send; they are daemons all.
            [thread for thread in threading.enumerate() if not thread.daemon],
        )

    BatchEngine(double, run_storage_url=str(storage)).run({"data": write_rows([{"n": 1}])})
    before = state()
    BatchEngine(double, run_storage_url=str(storage)).run({"data": write_rows([{"n": 1}])})
    assert state() == before


def test_it_runs_inside_a_running_event_loop(storage: Path, write_rows: Callable[..., Path]) -> None:
    async def notebook() -> int:
        return BatchEngine(double, run_storage_url=str(storage)).run({"data": write_rows([{"n": 1}])}).completed_lines

    assert asyncio.run(notebook()) == 1


def test_two_engines_at_once_do_not_disturb_each_other(storage: Path, write_rows: Callable[..., Path]) -> None:
    results = {}

    def run(name: str, count: int) -> None:
        data = write_rows([{"n": n} for n in range(count)], f"{name}.jsonl")
        results[name] = BatchEngine(double, worker_count=1, run_storage_url=str(storage)).run(
            {"data": data}, run_id=name
        )

    threads = [threading.Thread(target=run, args=(f"run{count}", count)) for count in (3, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert {name: result.completed_lines for name, result in results.items()} == {"run3": 3, "run5": 5}


def test_a_storage_gets_every_line_and_node(dag: Path, storage: Path, write_rows: Callable[..., Path]) -> None:
    mine = MemoryStorage()
    BatchEngine(dag, storage=mine, run_storage_url=str(storage)).run(
        {"data": write_rows([{"n": 1}, {"n": 2}])}, run_id="r"
    )
    assert sorted(mine.flow_runs) == [0, 1]
    assert mine.flow_runs[1].output == {"twice": 4}
    assert mine.flow_runs[1].run_id == "r_1"
    assert [info.node for info in mine.node_runs[0]] == ["twice"]
    assert [info.node for info in mine.node_runs[None]] == ["total"]


def test_a_storage_gets_the_lines_of_an_earlier_start_first(
    dag: Path, storage: Path, write_rows: Callable[..., Path]
) -> None:
    class Ordered(MemoryStorage):
        def __init__(self) -> None:
            super().__init__()
            self.calls: list[tuple[str, int | None]] = []

        def persist_node_run(self, run_info: RunInfo) -> None:
            self.calls.append((run_info.node, run_info.index))
            super().persist_node_run(run_info)

        def persist_flow_run(self, run_info: FlowRunInfo) -> None:
            self.calls.append(("line", run_info.index))
            super().persist_flow_run(run_info)

    BatchEngine(dag, run_storage_url=str(storage)).run({"data": write_rows([{"n": 1}, {"n": 2}])}, run_id="r")
    mine = Ordered()
    engine = BatchEngine(dag, storage=mine, run_storage_url=str(storage), on_change="reuse")
    engine.run({"data": write_rows([{"n": 3}, {"n": 1}, {"n": 2}])}, run_id="r")

    assert mine.calls == [
        ("twice", 1), ("line", 1), ("twice", 2), ("line", 2), ("twice", 0), ("line", 0), ("total", None),
    ]  # fmt: skip
    assert mine.flow_runs[2].output == {"twice": 4}
    assert mine.flow_runs[2].run_id == "r_2"


def test_lines_that_a_storage_knows_are_not_run_again(
    dag: Path, storage: Path, write_rows: Callable[..., Path]
) -> None:
    mine = MemoryStorage()
    rows = [{"n": n} for n in range(4)]
    BatchEngine(dag, storage=mine, run_storage_url=str(storage)).run({"data": write_rows(rows)})
    del mine.flow_runs[2]
    (dag / "witness").unlink()
    again = BatchEngine(dag, run_storage_url=str(storage)).run({"data": write_rows(rows)}, resume_from_run_storage=mine)
    assert executed(dag) == [2]
    assert (again.completed_lines, again.metrics) == (4, {"total": 12, "pairs_fit": True})


def test_aggregation_pairs_values_by_line_number_also_after_a_resume(
    dag: Path, storage: Path, write_rows: Callable[..., Path]
) -> None:
    rows = [{"line_number": number, "n": number} for number in (7, 2, 9, 4)]
    first = BatchEngine(dag, run_storage_url=str(storage)).run({"data": write_rows(rows[:2])}, run_id="part")
    assert first.metrics == {"total": 18, "pairs_fit": True}
    whole = BatchEngine(dag, run_storage_url=str(storage), on_change="reuse").run(
        {"data": write_rows(rows)}, run_id="part"
    )
    assert whole.metrics == {"total": 44, "pairs_fit": True}
    assert executed(dag) == [2, 4, 7, 9]
    lines = (storage / "part" / "outputs.jsonl").read_text().splitlines()
    assert [json.loads(line)["line_number"] for line in lines] == [2, 4, 7, 9]


LARGEST = 10**12 - 1


@pytest.mark.parametrize("numbers", [(0, LARGEST), (LARGEST - 1, str(LARGEST)), (float(LARGEST),)], ids=repr)
def test_line_numbers_up_to_the_largest_are_kept_and_read_again(
    numbers: Sequence[Any], storage: Path, write_rows: Callable[..., Path]
) -> None:
    data = write_rows([{"line_number": number, "n": 1} for number in numbers])
    segments = []
    for _ in ("first", "again"):
        result = BatchEngine(double, run_storage_url=str(storage)).run({"data": data}, run_id="r")
        assert result.completed_lines == len(numbers)
        segments.append(sorted((storage / "r" / "records").iterdir()))

    assert segments[0] == segments[1], "the second start ran no line"
    rows = [json.loads(row) for row in (storage / "r" / "outputs.jsonl").read_text().splitlines()]
    assert [row["line_number"] for row in rows] == [int(number) for number in numbers]


@pytest.mark.parametrize(
    "number", [LARGEST + 1, 1_700_000_000_000, 2**63 - 1, 2**63, -1, "1000000000000", "x", 1e12, 0.5]
)
def test_a_line_number_that_cannot_be_kept_is_refused_before_the_first_line(
    number: Any, storage: Path, write_rows: Callable[..., Path]
) -> None:
    data = write_rows([{"line_number": 1, "n": 1}, {"line_number": number, "n": 1}])

    with pytest.raises(
        InvalidUserData, match=r"line 2 .*: line_number is .*, expected a whole number from 0 to 999999999999"
    ):
        BatchEngine(double, run_storage_url=str(storage)).run({"data": data}, run_id="r")
    assert not (storage / "r" / "records").exists()


def test_a_variant_is_part_of_the_run(tmp_path: Path, storage: Path, write_rows: Callable[..., Path]) -> None:
    folder = tmp_path / "varied"
    folder.mkdir()
    (folder / "tool.py").write_text(
        "from promptflow.core import tool\n@tool\ndef times(n: int, by: int): return n * by\n"
    )
    (folder / "flow.dag.yaml").write_text(
        "inputs: {n: {type: int}}\n"
        "outputs: {out: {type: int, reference: '${a.output}'}}\n"
        "nodes: [{name: a, use_variants: true}]\n"
        "node_variants: {a: {default_variant_id: once, variants: {\n"
        "  once: {node: {type: python, source: {path: tool.py}, inputs: {n: '${inputs.n}', by: 1}}},\n"
        "  thrice: {node: {type: python, source: {path: tool.py}, inputs: {n: '${inputs.n}', by: 3}}}}}}\n"
    )
    data = {"data": write_rows([{"n": 5}])}

    def run(**options: Any) -> Any:
        return BatchEngine(folder, run_storage_url=str(storage), **options).run(data, run_id="varied")

    assert run(variant="${a.thrice}").completed_lines == 1
    assert json.loads((storage / "varied" / "outputs.jsonl").read_text())["out"] == 15
    assert json.loads((storage / "varied" / "manifest.json").read_text())["variant"] == "${a.thrice}"
    assert run(variant="a.thrice").completed_lines == 1
    with pytest.raises(RunChangedError, match="the variant is gone"):
        run()


def test_environment_variables_are_set_before_the_flow_is_imported_and_not_here(
    tmp_path: Path, storage: Path, write_rows: Callable[..., Path]
) -> None:
    folder = tmp_path / "reads"
    folder.mkdir()
    (folder / "reads.py").write_text(
        "import os\nFOUND = {k: v for k, v in os.environ.items() if k.startswith('OF_FLOW_')}\ndef run(n: int): return FOUND\n"
    )
    (folder / "flow.flex.yaml").write_text(
        "entry: reads:run\nenvironment_variables: {OF_FLOW_A: 1, OF_FLOW_B: [x], OF_FLOW_C: of the yaml}\n"
    )
    data = {"data": write_rows([{"n": 5}])}

    def run(**variables: str) -> Any:
        engine = BatchEngine(folder, run_storage_url=str(storage), environment_variables=variables)
        return engine.run(data, run_id="env")

    assert run(OF_FLOW_C="canary-4712").completed_lines == 1
    found = json.loads((storage / "env" / "outputs.jsonl").read_text())
    assert {name: found[name] for name in found if name.startswith("OF")} == {
        "OF_FLOW_A": "1", "OF_FLOW_B": '["x"]', "OF_FLOW_C": "canary-4712",
    }  # fmt: skip
    assert "OF_FLOW_A" not in os.environ
    manifest = (storage / "env" / "manifest.json").read_text()
    assert (json.loads(manifest)["environment_names"], "canary-4712" in manifest) == (["OF_FLOW_C"], False)
    with pytest.raises(RunChangedError, match="the environment variables changed"):
        run(OF_FLOW_C="other")


def test_additional_includes_are_merged_for_the_run_and_removed(
    tmp_path: Path, storage: Path, write_rows: Callable[..., Path]
) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "helper.py").write_text("def where(): return __file__\n")
    folder = tmp_path / "includes"
    folder.mkdir()
    (folder / "main_of_includes.py").write_text(
        "from shared.helper import where\ndef run(n: int): return {'at': where()}\n"
    )
    (folder / "flow.flex.yaml").write_text("entry: main_of_includes:run\nadditional_includes: [../shared]\n")
    data = {"data": write_rows([{"n": 5}])}

    for _ in range(2):
        result = BatchEngine(folder, run_storage_url=str(storage)).run(data, run_id="inc")
        assert result.completed_lines == 1

    at = Path(json.loads((storage / "inc" / "outputs.jsonl").read_text())["at"])
    assert (at.parts[-2:], at.exists()) == (("shared", "helper.py"), False)
    manifest = json.loads((storage / "inc" / "manifest.json").read_text())
    assert manifest["working_dir"] == str(folder)
    assert str(at.parents[1]) not in json.dumps(manifest)
    (tmp_path / "shared" / "helper.py").write_text("def where(): return ''\n")
    with pytest.raises(RunChangedError, match="the flow's files changed"):
        BatchEngine(folder, run_storage_url=str(storage)).run(data, run_id="inc")


def test_max_lines_count_cuts_the_data(storage: Path, write_rows: Callable[..., Path]) -> None:
    rows = [{"n": n} for n in range(9)]
    result = BatchEngine(double, run_storage_url=str(storage)).run({"data": write_rows(rows)}, max_lines_count=4)
    assert result.total_lines == 4


def test_prefect_gets_no_password_of_an_address(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect keeps and shows the parameters of a run. The run itself gets the addresses as they were given."""
    seen: list[Any] = []

    async def capture(shown: dict[str, Any]) -> None:
        seen.extend((shown, current_live_run().parameters))

    monkeypatch.setattr(flows_module, "_called", capture)
    monkeypatch.setattr(flows_module, "start_own_server", lambda: None)
    url = "https://bob:canary12345@h.example/rows.jsonl?sig=canary67890"
    engine = BatchEngine(double, run_storage_url="sftp://bob:canary12345@h.example/runs", image_roots=[url])

    with pytest.raises(UnexpectedError):
        engine.run({"data": url})

    shown, given = seen
    assert "canary" not in str(shown)
    assert shown["more_data"] == {"data": "https://bob:…@h.example/rows.jsonl?sig=…"}
    assert (given["more_data"], given["image_roots"]) == ({"data": url}, [url])
    assert given["storage"] == "sftp://bob:canary12345@h.example/runs"


def test_init_kwargs_are_not_kept_by_the_run(storage: Path, write_rows: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "keyed.py").write_text(
        "class Keyed:\n    def __init__(self, key: str): self.key = key\n    def __call__(self, n: int): return len(self.key)\n"
    )
    engine = BatchEngine(
        f"{tmp_path / 'keyed.py'}:Keyed", init_kwargs={"key": "canary-4711"}, run_storage_url=str(storage)
    )
    assert engine.run({"data": write_rows([{"n": 1}])}, run_id="r").completed_lines == 1
    kept = [path for path in storage.rglob("*") if path.is_file() and b"canary-4711" in path.read_bytes()]
    assert kept == []


class UpperProxy(AbstractExecutorProxy):
    """An executor of another language, in a few lines."""

    @classmethod
    async def create(cls, flow_file: Path, working_dir: Path | None = None, **kwargs: Any) -> UpperProxy:
        return cls()

    async def exec_line_async(
        self, inputs: Mapping[str, Any], index: int | None = None, run_id: str | None = None
    ) -> Any:
        if inputs["text"] == "bad":
            raise RuntimeError("the service says no")
        return {"output": {"loud": inputs["text"].upper()}, "run_info": {"status": "Completed"}}


@pytest.fixture
def foreign_flow(tmp_path: Path) -> Path:
    folder = tmp_path / "foreign"
    folder.mkdir()
    (folder / "flow.dag.yaml").write_text(
        "language: cobol\ninputs:\n  text: {type: string}\noutputs:\n  loud: {reference: '${up.output}'}\n"
    )
    return folder


def test_a_flow_of_an_unknown_language_says_how_to_register_one(
    foreign_flow: Path, storage: Path, write_rows: Callable[..., Path]
) -> None:
    with pytest.raises(UnsupportedFeatureError, match=r"written in 'cobol'.*register_executor"):
        BatchEngine(foreign_flow, run_storage_url=str(storage)).run({"data": write_rows([{"text": "a"}])})


def test_a_registered_executor_runs_flows_of_its_language(
    foreign_flow: Path, storage: Path, write_rows: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect_batchflow.execution.languages._REGISTRY", {})
    BatchEngine.register_executor("cobol", UpperProxy)
    result = BatchEngine(foreign_flow, run_storage_url=str(storage)).run(
        {"data": write_rows([{"text": "a"}, {"text": "bad"}])}, run_id="r"
    )
    assert (result.completed_lines, result.failed_lines) == (1, 1)
    assert "the service says no" in result.error_summary.error_list[0].error["message"]
    assert (storage / "r" / "outputs.jsonl").read_text() == '{"line_number": 0, "loud": "A"}\n'


def test_batch_timeout_gives_a_partial_result_that_can_resume(
    storage: Path, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    flow = tmp_path / "slow.py"
    flow.write_text(
        "import os\ndef main(n: int, gate: str):\n    while n == 1 and not os.path.exists(gate): pass\n    return n\n"
    )
    rows = [{"n": n, "gate": str(tmp_path / "gate")} for n in range(3)]
    options: dict[str, Any] = {"worker_count": 1, "run_storage_url": str(storage)}
    part = BatchEngine(f"{flow}:main", batch_timeout_sec=3, **options).run({"data": write_rows(rows)}, run_id="r")
    assert part.status is Status.Failed
    assert part.error_summary.batch_error_dict is not None
    assert part.error_summary.batch_error_dict["innerError"]["code"] == "BatchRunTimeoutError"
    assert part.completed_lines + part.canceled_lines + part.not_started_lines == part.total_lines == 3
    assert part.completed_lines < 3
    (tmp_path / "gate").touch()
    assert BatchEngine(f"{flow}:main", **options).run({"data": write_rows(rows)}, run_id="r").completed_lines == 3


@pytest.mark.parametrize("granularity", ["line", "chunk"])
@pytest.mark.parametrize(
    "limit", [{"max_failures": 1}, {"max_failures": "3"}, {"max_failures": "50%"}, {"max_same_errors": 3}], ids=str
)
def test_a_run_that_goes_wrong_ends_and_resumes(
    granularity: str, limit: dict[str, Any], storage: Path, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    flow = tmp_path / "failing.py"
    flow.write_text(
        "import os\ndef main(n: int, mended: str):\n    if n > 4 and not os.path.exists(mended): raise KeyError(n)\n"
        "    return n\n"
    )
    data = write_rows([{"n": n, "mended": str(tmp_path / "mended")} for n in range(60)])
    options: dict[str, Any] = {"worker_count": 1, "granularity": granularity, "run_storage_url": str(storage)}

    part = BatchEngine(f"{flow}:main", **options, **limit).run({"data": data}, run_id="r")

    assert part.status is Status.Failed
    assert part.error_summary.batch_error_dict is not None
    assert part.error_summary.batch_error_dict["innerError"]["code"] == "BatchFailureLimitError"
    assert part.completed_lines == 5
    assert 1 <= part.failed_lines < 55
    assert part.completed_lines + part.failed_lines + part.canceled_lines + part.not_started_lines == 60

    (tmp_path / "mended").touch()
    whole = BatchEngine(f"{flow}:main", **options, **limit).run({"data": data}, run_id="r")

    assert (whole.status, whole.completed_lines) == (Status.Completed, 60)


@pytest.mark.parametrize("granularity", ["line", "chunk"])
def test_a_failed_line_is_retried_and_each_attempt_is_recorded(
    granularity: str, storage: Path, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    flow = tmp_path / "flaky.py"
    flow.write_text(
        "import os\ndef main(n: int, once: str):\n    try: os.mkdir(once)\n    except FileExistsError: return n\n"
        "    raise RuntimeError('first time')\n"
    )
    engine = BatchEngine(f"{flow}:main", granularity=granularity, retries=2, run_storage_url=str(storage))
    result = engine.run({"data": write_rows([{"n": 5, "once": str(tmp_path / "once")}])}, run_id="r")
    assert (result.completed_lines, result.failed_lines) == (1, 0)
    records = records_in(storage / "r")
    assert sorted((record["attempt"], record["status"]) for record in records) == [(1, "Failed"), (2, "Completed")]


REFUSED_ONCE = """
import os, time

class TooMany(Exception):
    pass

def main(n: int, folder: str, wait_sec: float):
    with open(f"{folder}/seen", "a") as seen:
        seen.write(f"{n} {time.monotonic()}\\n")
    if n == 0 and not os.path.exists(f"{folder}/refused"):
        os.mkdir(f"{folder}/refused")
        error = TooMany("later")
        error.retry_after_sec = wait_sec
        raise error
    return n
"""


@pytest.mark.parametrize("granularity", ["line", "chunk"])
def test_a_retry_waits_as_long_as_the_service_asks_and_holds_no_worker(
    granularity: str, storage: Path, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    flow = tmp_path / "refused.py"
    flow.write_text(REFUSED_ONCE)
    rows = [{"n": n, "folder": str(tmp_path), "wait_sec": 0.6} for n in range(4)]
    engine = BatchEngine(
        f"{flow}:main",
        granularity=granularity,
        retries=1,
        retry_on="TooMany",
        worker_count=1,
        run_storage_url=str(storage),
    )

    assert engine.run({"data": write_rows(rows)}).completed_lines == 4

    seen = [(int(n), float(moment)) for n, moment in map(str.split, (tmp_path / "seen").read_text().splitlines())]
    assert [n for n, _ in seen] == [0, 1, 2, 3, 0]
    assert seen[-1][1] - seen[0][1] >= 0.6


@pytest.mark.parametrize("granularity", ["line", "chunk"])
def test_the_wait_that_a_service_asks_for_ends_with_the_run(
    granularity: str, storage: Path, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    flow = tmp_path / "refused.py"
    flow.write_text(REFUSED_ONCE)
    rows = [{"n": 0, "folder": str(tmp_path), "wait_sec": 250}]
    engine = BatchEngine(
        f"{flow}:main", granularity=granularity, retries=1, batch_timeout_sec=1.5, run_storage_url=str(storage)
    )

    result = engine.run({"data": write_rows(rows)})

    assert result.error_summary.batch_error_dict is not None
    assert result.error_summary.batch_error_dict["innerError"]["code"] == "BatchRunTimeoutError"
    assert len((tmp_path / "seen").read_text().splitlines()) == 1


def test_only_the_named_errors_are_retried(storage: Path, write_rows: Callable[..., Path], tmp_path: Path) -> None:
    flow = tmp_path / "witness.py"
    flow.write_text("def main(file: str):\n    open(file, 'a').write('x')\n    raise RuntimeError('no')\n")
    witness = tmp_path / "seen"
    engine = BatchEngine(f"{flow}:main", retries=3, retry_on="LineExecutionTimeoutError", run_storage_url=str(storage))
    assert engine.run({"data": write_rows([{"file": str(witness)}])}).failed_lines == 1
    assert witness.read_text() == "x"


@pytest.mark.parametrize("granularity", ["line", "chunk"])
def test_errors_are_retried_by_their_class_and_rows_that_do_not_fit_never(
    granularity: str, storage: Path, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    flow = tmp_path / "witness.py"
    flow.write_text(
        "def main(n: int, file: str):\n    open(file, 'a').write(f'{n} ')\n"
        "    raise {1: KeyError('no'), 2: ConnectionResetError('no'), 3: TimeoutError('no')}[n]\n"
    )
    witness = tmp_path / "seen"
    options: dict[str, Any] = {"granularity": granularity, "run_storage_url": str(storage), "worker_count": 1}
    rows = write_rows([{"n": n, "file": str(witness)} for n in (1, 2, 3, "none")])

    named = BatchEngine(f"{flow}:main", retries=1, retry_on=["transient", "timeout"], **options)
    assert named.run({"data": rows}, run_id="named").failed_lines == 4

    assert sorted(witness.read_text().split()) == ["1", "2", "2", "3", "3"]
    attempts = {row["line_number"]: row["_attempts"] for row in map(json.loads, failed_rows(storage / "named"))}
    assert attempts == {0: 1, 1: 2, 2: 2, 3: 1}

    assert BatchEngine(f"{flow}:main", retries=1, **options).run({"data": rows}, run_id="all").failed_lines == 4

    attempts = {row["line_number"]: row["_attempts"] for row in map(json.loads, failed_rows(storage / "all"))}
    assert attempts == {0: 2, 1: 2, 2: 2, 3: 1}


def failed_rows(run: Path) -> list[str]:
    return (run / "failed.jsonl").read_text().splitlines()


def test_a_misspelt_class_of_errors_is_refused(storage: Path, write_rows: Callable[..., Path]) -> None:
    engine = BatchEngine(halve, retries=1, retry_on="ratelimit", run_storage_url=str(storage))
    with pytest.raises(InvalidOptionError, match="rate_limit"):
        engine.run({"data": write_rows([{"n": 1}])})


def test_a_second_run_of_a_running_id_is_refused(storage: Path, write_rows: Callable[..., Path]) -> None:
    refused: list[BaseException] = []

    def listener(_report: Any) -> None:
        if not refused:
            try:
                BatchEngine(double, run_storage_url=str(storage)).run({"data": write_rows([{"n": 1}])}, run_id="r")
            except RunInUseError as exc:
                refused.append(exc)
            engine.cancel()

    def forever(n: int) -> int:
        while True:
            pass

    engine = BatchEngine(forever, worker_count=1, run_storage_url=str(storage), listener=listener)
    engine.run({"data": write_rows([{"n": 1}])}, run_id="r")
    assert "'r' is already running by process" in str(refused[0])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"retry_on": None}, "retry_on is None. It must be names of errors, separated by commas."),
        ({"retry_on": 3}, "retry_on is 3. It must be names of errors, separated by commas."),
        ({"retry_on": [1]}, "retry_on is [1]. It must be names of errors, separated by commas."),
        ({"retry_on": b"crash"}, "retry_on is b'crash'. It must be names of errors, separated by commas."),
        ({"rerun": None}, "rerun is None. It must be names of errors, separated by commas."),
        ({"worker_count": True}, "worker_count is True. It must be auto, or a whole number from 1 to 1024."),
        ({"environment_variables": [1]}, "environment_variables is a list. It must be a mapping of names to values."),
        (
            {"environment_variables": {1: 2}},
            "environment_variables is a dict. It must be a mapping of names to values.",
        ),
        ({"connections": "x"}, "connections is a str. It must be a mapping of names to values."),
        ({"init_kwargs": "x"}, "init_kwargs is a str. It must be a mapping of names to values."),
        ({"storage": "x"}, "storage is a str. It must be an AbstractRunStorage."),
        pytest.param(
            {"storage": KeptByNobody()},
            "KeptByNobody.persist_flow_run is an async function. Nothing waits for it",
            id="a storage with an async method",
        ),
        (
            {"max_failed_percent": 3},
            "BatchEngine has no max_failed_percent. Use max_failures='5%'.",
        ),
    ],
    ids=str,
)
def test_a_value_of_a_wrong_type_is_refused_by_name(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        BatchEngine(double, **options).run({"data": "rows.jsonl"})
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"options": {"workers": 3}}, InvalidOptionError, "has no workers"),
        ({"options": {"worker_count": -1}}, InvalidOptionError, "worker_count"),
        ({"options": {"granularity": "lines"}}, InvalidOptionError, "granularity.*'lines'"),
        ({"run": {"run_id": "../x"}}, InvalidRunIdError, "'../x' is not valid"),
        ({"run": {"inputs_mapping": {"n": "${data.m}"}}}, InputMappingError, "data.m"),
        ({"run": {"inputs_mapping": {"n": "${rows.n}"}}}, InputMappingError, "rows"),
        ({"data": "missing.jsonl"}, InvalidUserData, "missing.jsonl"),
        ({"options": {"run_storage_url": "/proc/nowhere"}}, StorageError, "/proc/nowhere"),
        ({"options": {"run_storage_url": "s3::file://x"}}, InvalidOptionError, "chained"),
        ({"options": {"task_runner_address": "tcp://x:1"}}, InvalidOptionError, "needs a cluster"),
        ({"options": {"task_runner": "dask", "granularity": "line"}}, InvalidOptionError, "the cluster gets chunks"),
        (
            {"options": {"task_runner": "ray", "run_storage_url": "memory://r"}},
            InvalidOptionError,
            "memory of this process",
        ),
        (
            {"options": {"task_runner": "dask"}, "run": {"executor_proxy": Mock()}},
            UnsupportedFeatureError,
            "runs Python flows only",
        ),
    ],
    ids=[
        *["option", "bound", "choice", "run id", "column", "source", "data", "storage", "chain"],
        *["address without cluster", "cluster and line", "cluster and memory", "cluster and proxy"],
    ],
)
def test_wrong_use_says_what_is_wrong_and_writes_nothing(
    given: dict[str, Any], error: type[Exception], text: str, storage: Path, write_rows: Callable[..., Path]
) -> None:
    data = given.get("data") or write_rows([{"n": 1}])
    with pytest.raises(error, match=text):
        BatchEngine(double, **{"run_storage_url": str(storage), **given.get("options", {})}).run(
            {"data": data}, **given.get("run", {})
        )
    assert not storage.exists() or not any(storage.iterdir())


def test_broken_json_is_named_before_any_line_runs(storage: Path, tmp_path: Path) -> None:
    data = tmp_path / "broken.jsonl"
    data.write_text('{"n": 1}\n' * 6 + '{"n": \n' + '{"n": 1}\n')
    with pytest.raises(InvalidUserData, match=r"broken\.jsonl, line 7"):
        BatchEngine(double, run_storage_url=str(storage)).run({"data": data})
    assert not storage.exists()


def test_a_missing_flow_is_refused_by_the_constructor(tmp_path: Path) -> None:
    with pytest.raises(FlowNotFoundError, match="nowhere"):
        BatchEngine(tmp_path / "nowhere")


def test_a_rerun_that_was_stopped_goes_on_as_one(dag: Path, storage: Path, write_rows: Callable[..., Path]) -> None:
    data = write_rows([{"n": n} for n in range(3)])
    options: dict[str, Any] = {"worker_count": 1, "run_storage_url": str(storage)}
    BatchEngine(dag, **options).run({"data": data}, run_id="r")
    (dag / "helper.py").write_text("changed = True\n")
    (dag / "witness").unlink()
    with pytest.raises(RunChangedError, match="the flow's files changed"):
        BatchEngine(dag, **options).run({"data": data}, run_id="r")

    def cancel_soon(report: Any) -> None:
        if report.completed_lines:
            engine.cancel()

    engine = BatchEngine(dag, on_change="rerun", listener=cancel_soon, **options)
    part = engine.run({"data": data}, run_id="r")
    whole = BatchEngine(dag, **options).run({"data": data}, run_id="r")
    assert part.completed_lines + part.canceled_lines + part.not_started_lines == 3
    assert (whole.completed_lines, executed(dag)) == (3, [0, 1, 2])


def test_outputs_of_lines_whose_inputs_changed_are_not_kept(
    storage: Path, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    def run(rows: list[dict[str, int]], on_change: str) -> list[Any]:
        engine = BatchEngine(double, run_storage_url=str(storage), on_change=on_change)
        engine.run({"data": write_rows(rows)}, None, tmp_path / "out", run_id="r")
        return [json.loads(line)["n"] for line in (tmp_path / "out" / "output.jsonl").read_text().splitlines()]

    assert run([{"n": 1}, {"n": 2}, {"n": 3}], "refuse") == [2, 4, 6]
    assert run([{"n": 1}, {"n": 5}], "reuse") == [2, 10]


def test_a_cancel_ends_the_aggregation_too(storage: Path, write_rows: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text(
        "class Endless:\n    def __call__(self, n: int): return n\n"
        "    def __aggregate__(self, results):\n        open('aggregating', 'w').close()\n        while True: pass\n"
    )
    engine = BatchEngine(f"{tmp_path / 'endless.py'}:Endless", run_storage_url=str(storage))

    def cancel_when_it_aggregates() -> None:
        wait_until((tmp_path / "aggregating").exists, description="the aggregation has begun", timeout_sec=60)
        engine.cancel()

    watcher = threading.Thread(target=cancel_when_it_aggregates)
    watcher.start()
    result = engine.run({"data": write_rows([{"n": 1}])}, run_id="r")
    watcher.join(timeout=10)
    assert (result.status, result.completed_lines, result.metrics) == (Status.Canceled, 1, {})


def test_the_log_tells_of_the_lines_that_failed_only(
    storage: Path, write_rows: Callable[..., Path], told: list[str]
) -> None:
    BatchEngine(halve, run_storage_url=str(storage)).run({"data": write_rows([{"n": n} for n in range(3)])})

    (message,) = told
    assert message.startswith("Finished in state Failed")
    assert "division by zero" in message


PRINTING = """
import os, sys
def main(n: int):
    if n:
        print(f"line {n} says so")
    if n == 2:
        raise KeyError(n)
    if n == 3:
        sys.stderr.write("and hangs\\n")
        while True: pass
    if n == 4:
        os.write(1, b"and dies\\n")
        os._exit(3)
    return n
"""


@pytest.mark.parametrize("granularity", ["line", "chunk"])
def test_what_a_line_prints_is_in_its_record_and_in_the_log_also_when_it_was_killed(
    granularity: str, storage: Path, write_rows: Callable[..., Path], tmp_path: Path, told: list[str]
) -> None:
    flow = tmp_path / "printing.py"
    flow.write_text(PRINTING)
    engine = BatchEngine(f"{flow}:main", line_timeout_sec=1, granularity=granularity, run_storage_url=str(storage))

    engine.run({"data": write_rows([{"n": n} for n in range(5)])}, run_id="r")

    expected = {
        1: "line 1 says so\n",
        2: "line 2 says so\n",
        3: "line 3 says so\nand hangs\n",
        4: "line 4 says so\nand dies\n",
    }
    printed = sorted(message for message in told if " printed:\n" in message)
    assert printed == [f"Line {n} printed:\n{text.rstrip()}" for n, text in expected.items()]
    records = records_in(storage / "r")
    assert {record["line_number"]: record["logs"] for record in records} == {0: "", **expected}


def test_the_log_has_what_each_attempt_prints_of_the_first_lines_only(
    storage: Path, write_rows: Callable[..., Path], tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect_batchflow.prefect_runtime.logs.MOST_LINES", 2)
    flow = tmp_path / "printing.py"
    flow.write_text("def main(n: int):\n    print('x' * 3_000 + f'end {n}')\n    return 1 / (n - 1)\n")
    engine = BatchEngine(f"{flow}:main", retries=1, worker_count=1, run_storage_url=str(storage))

    engine.run({"data": write_rows([{"n": n} for n in range(5)])})

    printed = [message for message in told if " printed:\n" in message]
    assert [message.split(" printed")[0] for message in printed if "Line 1" in message] == [
        "Line 1",
        "Line 1, attempt 2,",
    ]
    assert len(printed) == 4
    assert all(len(message) < 2_200 and "more characters" in message for message in printed)
    assert all(message[-5:].startswith("end ") for message in printed)
    assert len([message for message in told if "in their records only" in message]) == 2


def test_the_log_tells_of_each_attempt_that_is_retried(
    storage: Path, write_rows: Callable[..., Path], told: list[str]
) -> None:
    engine = BatchEngine(halve, run_storage_url=str(storage), retries=1)
    engine.run({"data": write_rows([{"n": n} for n in range(2)])})

    retried, ended = [message for message in told if "division by zero" in message]
    assert "Retry 1/1" in retried
    assert ended.startswith("Finished in state Failed")


def test_an_output_folder_that_cannot_be_written_is_told_before_any_line_runs(
    dag: Path, storage: Path, write_rows: Callable[..., Path]
) -> None:
    (storage.parent / "file").touch()
    with pytest.raises(InvalidOptionError, match=r"Cannot write to the output_dir .*file/out.*No line has run"):
        BatchEngine(dag, run_storage_url=str(storage)).run(
            {"data": write_rows([{"n": 1}])}, output_dir=storage.parent / "file" / "out"
        )
    assert executed(dag) == []


def test_lines_of_a_run_that_is_not_there_leave_nothing_behind(
    dag: Path, storage: Path, write_rows: Callable[..., Path]
) -> None:
    from prefect_batchflow.flows import run_batch
    from prefect_batchflow.run.handle import LiveRun

    parameters = {"flow": str(dag), "data": str(write_rows([{"n": 1}])), "storage": str(storage), "run_id": "mine"}
    with pytest.raises(RunNotFoundError, match="'nowhere'"):
        run_batch({**parameters, "resume_from": "nowhere"}, LiveRun())
    assert not (storage / "mine").exists()


def test_a_listener_that_raises_does_not_cost_the_run(storage: Path, write_rows: Callable[..., Path]) -> None:
    def listener(_report: Any) -> None:
        raise BrokenPipeError("nobody reads")

    engine = BatchEngine(double, run_storage_url=str(storage), listener=listener)
    assert engine.run({"data": write_rows([{"n": 1}])}).completed_lines == 1


def test_lines_of_another_version_of_the_flow_are_not_taken_over_in_silence(
    dag: Path, storage: Path, write_rows: Callable[..., Path]
) -> None:
    from prefect_batchflow.flows import run_batch
    from prefect_batchflow.run.handle import LiveRun

    data = str(write_rows([{"n": 1}]))
    BatchEngine(dag, run_storage_url=str(storage)).run({"data": data}, run_id="old")
    (dag / "helper.py").write_text("changed = True\n")
    again = {"flow": str(dag), "data": data, "storage": str(storage), "resume_from": "old"}
    with pytest.raises(RunChangedError, match="Cannot take over lines of run 'old': the flow's files changed"):
        run_batch({**again, "run_id": "new"}, LiveRun())
    assert run_batch({**again, "run_id": "newer", "on_change": "reuse"}, LiveRun()).completed_lines == 1
    assert executed(dag) == [1]


def test_resume_from_that_comes_too_late_is_said(dag: Path, storage: Path, write_rows: Callable[..., Path]) -> None:
    from prefect_batchflow.flows import run_batch
    from prefect_batchflow.run.handle import LiveRun

    parameters = {"flow": str(dag), "data": str(write_rows([{"n": 1}])), "storage": str(storage), "run_id": "mine"}
    first, second = LiveRun(), LiveRun()
    run_batch(parameters, first)
    run_batch({**parameters, "resume_from": "other"}, second)
    assert first.notes == []
    assert second.notes[0].startswith("resume_from 'other' is ignored: the run 'mine' exists")


def test_a_line_ended_by_a_signal_without_a_name_fails_alone(storage: Path, write_rows: Callable[..., Path]) -> None:
    def end(n: int) -> int:
        import os

        if n == 1:
            os.kill(os.getpid(), 35)
        return n

    result = BatchEngine(end, worker_count=1, run_storage_url=str(storage)).run(
        {"data": write_rows([{"n": n} for n in range(3)])}
    )
    assert (result.completed_lines, result.failed_lines) == (2, 1)
    assert "killed by signal 35" in result.error_summary.error_list[0].error["message"]


@pytest.mark.parametrize("here", [True, False], ids=["it is in the current folder", "it is nowhere"])
def test_a_missing_relative_path_says_where_it_starts(
    here: bool,
    dag: Path,
    storage: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write_rows: Callable[..., Path],
) -> None:
    monkeypatch.chdir(tmp_path)
    if here:
        write_rows([{"n": 1}], "rows.jsonl")

    with pytest.raises(InvalidUserData) as caught:
        BatchEngine(dag, run_storage_url=str(storage)).run({"data": "rows.jsonl"})

    said = str(caught.value)
    assert (
        f"{dag}/rows.jsonl not found. Check the path. Relative paths start at the working_dir of the engine, {dag}."
        in said
    )
    assert ("'rows.jsonl' exists in the current folder: give its absolute path." in said) is here
