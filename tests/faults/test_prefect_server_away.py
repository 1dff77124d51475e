"""F9: a Prefect server that goes away at any step of a run. No line is lost or runs twice, and what it was not told is said."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_proxy import FROZEN, KILLED, RESET, THERE, PrefectProxy

from prefect_batchflow import batch_run
from prefect_batchflow.cli import runs
from prefect_batchflow.cli.commands import main
from prefect_batchflow.exceptions import PrefectServerError
from prefect_batchflow.flows import run_batch
from prefect_batchflow.prefect_runtime import reached_server, server_calls
from prefect_batchflow.report import artifacts
from prefect_batchflow.run import ending
from prefect_batchflow.run.handle import LiveRun, handed_over

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from prefect_batchflow.results.models import BatchResult

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("prefect_server"), pytest.mark.timeout(120)]

LINES = 6
BOUND_SEC = 1.0
LAST_STATE_SEC = 3.5
"""Prefect's client waits 2 s after an answer that the server is busy, also when it does not ask again."""
ENOUGH_SEC = 30.0
"""For the last state of a run whose server is there, on a busy machine."""
ENDS_WITHIN_SEC = 25.0
"""With bounds of a second or so, on a busy machine. Prefect alone would try for minutes."""

CREATE, BEGIN, LINE, ARTIFACT, LAST_STATE = "create", "begin", "line", "artifact", "last state"


@pytest.fixture(autouse=True)
def short_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_calls, "LAST_STATE_SEC", LAST_STATE_SEC)
    monkeypatch.setattr(reached_server, "ANSWER_WITHIN_SEC", 4.0)  # the first question is to a server that is there
    for place, names in {
        server_calls: ("BEGIN_SEC",),
        reached_server: ("BUSY_FOR_SEC",),
        artifacts: ("WRITE_TIMEOUT_SEC", "PROGRESS_TIMEOUT_SEC"),
        ending: ("GONE_AFTER_SEC", "SILENT_AFTER_SEC"),
    }.items():
        for name in names:
            monkeypatch.setattr(place, name, BOUND_SEC)


class Run:
    """A run whose Prefect server changes at one point, and the traces that its lines leave."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "flow_code.py").write_text(
            "import os\n"
            "def main(n: int):\n"
            f"    witness = os.open({str(folder / 'witness')!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)\n"
            "    os.write(witness, b'%d\\n' % n)\n"
            "    os.close(witness)\n"
            "    return {'n': n}\n"
        )
        (folder / "data.jsonl").write_text("".join(f'{{"n": {n}}}\n' for n in range(LINES)))
        self.parameters: dict[str, Any] = {
            "flow": f"{folder / 'flow_code.py'}:main",
            "data": str(folder / "data.jsonl"),
            "storage": str(folder / "runs"),
            "run_id": "r",
            "worker_count": 2,
        }
        self.live = LiveRun()

    def start(self, door: str = "engine") -> BatchResult | None:
        """Run to the end, through a door; what the caller gets."""
        if door == "engine":
            return run_batch(self.parameters, self.live)
        with handed_over(self.live):
            result: BatchResult | None = asyncio.run(_directly(self.parameters))
        return result

    def executed(self) -> Counter[int]:
        witness = self.folder / "witness"
        return Counter(map(int, witness.read_text().split())) if witness.exists() else Counter()

    def outputs(self) -> list[int]:
        text = (self.folder / "runs" / "r" / "outputs.jsonl").read_text()
        return [json.loads(line)["n"] for line in text.splitlines()]

    def flow_run_id(self, start: int = -1) -> UUID:
        manifest = json.loads((self.folder / "runs" / "r" / "manifest.json").read_text())
        return UUID(manifest["sessions"][start]["prefect_flow_run_id"])


async def _directly(parameters: dict[str, Any]) -> Any:
    return await batch_run(**parameters)


@contextlib.contextmanager
def server_becomes(how: str, point: str, run: Run) -> Iterator[PrefectProxy]:
    """The server is `how` from the run's first request of a kind on."""

    def is_point(method: str, path: str, body: Any) -> bool:
        state = body["state"]["type"] if path.endswith("/set_state") else ""
        return {
            CREATE: (method, path) == ("POST", "/flow_runs/"),
            BEGIN: state == "RUNNING",
            # The progress is written from the first line on.
            LINE: (method, path) == ("POST", "/artifacts/"),
            ARTIFACT: (method, path) == ("POST", "/artifacts/") and body["type"] == "markdown",
            LAST_STATE: state in ("COMPLETED", "FAILED"),
        }[point]

    def on_request(method: str, path: str, body: Any) -> None:
        if proxy.how == THERE and is_point(method, path, body):
            proxy.how = how

    with (
        PrefectProxy(str(PREFECT_API_URL.value()), on_request) as proxy,
        temporary_settings({PREFECT_API_URL: proxy.url}),
    ):
        yield proxy


def state_of(flow_run_id: UUID) -> str:
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(flow_run_id).state
    assert state is not None
    return state.type.value


@pytest.mark.parametrize(
    ("point", "how", "door"),
    [
        *((point, how, "direct") for point in (CREATE, BEGIN) for how in (KILLED, FROZEN)),
        (CREATE, FROZEN, "engine"),
        (BEGIN, "500", "engine"),
    ],
)
def test_a_server_that_goes_away_before_the_first_line_ends_the_run_with_the_cause(
    point: str, how: str, door: str, tmp_path: Path
) -> None:
    run = Run(tmp_path)
    began = time.monotonic()

    with (
        server_becomes(how, point, run),
        pytest.raises(PrefectServerError, match=r"cannot be reached|does not answer|answers 500") as caught,
    ):
        run.start(door)

    assert time.monotonic() - began < ENDS_WITHIN_SEC
    assert not run.executed()
    assert not (tmp_path / "runs" / "r").exists()
    assert ("To remove it: prefect flow-run delete" in str(caught.value)) == (point == BEGIN)


@pytest.mark.parametrize(
    ("door", "point", "how", "cause"),
    [
        ("engine", LINE, KILLED, "cannot be reached: "),
        ("direct", LAST_STATE, KILLED, "cannot be reached: "),
        ("direct", LINE, FROZEN, "does not answer within 4 s"),
        ("engine", ARTIFACT, FROZEN, "does not answer within 4 s"),
        ("engine", LAST_STATE, FROZEN, "does not answer within 4 s"),
        ("engine", LINE, RESET, "cannot be reached: Server disconnected"),
        ("direct", LINE, "503", "answers 503 Service Unavailable"),
        ("engine", ARTIFACT, "429", "answers 429 Too Many Requests"),
        ("direct", LAST_STATE, "500", "answers 500 Internal Server Error"),
        ("engine", LINE, "401", "refuses access: 401 Unauthorized"),
        ("engine", LAST_STATE, "404", "does not know this flow run, because it has another database now"),
    ],
)  # fmt: skip
def test_a_server_that_goes_away_later_costs_no_line_and_is_named(
    point: str, how: str, cause: str, door: str, tmp_path: Path
) -> None:
    run = Run(tmp_path)
    began = time.monotonic()

    with server_becomes(how, point, run) as proxy:
        result = run.start(door)
        url = proxy.url

    assert time.monotonic() - began < ENDS_WITHIN_SEC
    assert result is not None
    assert (result.status.value, result.completed_lines) == ("Completed", LINES)
    assert run.executed() == Counter(range(LINES))
    assert run.outputs() == list(range(LINES))
    assert state_of(run.flow_run_id()) in ("RUNNING", "COMPLETED")  # one that thaws takes what it was sent
    (note,) = [note for note in run.live.notes if "Prefect server" in note]
    assert note.startswith(f"The Prefect server at {url} {cause}")
    assert note.count("The run's own records and outputs are whole.") == 1
    corrects = f"`batchflow show r --storage {tmp_path / 'runs'}` sets this right."
    assert (f"flow run {run.flow_run_id()} as running" in note, corrects in note) == ((how != "404",) * 2)


@pytest.mark.parametrize("how", [KILLED, "429"])
def test_a_server_that_comes_back_while_the_run_ends_gets_its_last_state(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_calls, "LAST_STATE_SEC", ENOUGH_SEC)
    run = Run(tmp_path)
    with server_becomes(how, LINE, run) as proxy:
        monkeypatch.setattr(ending, "let_go_of_server", lambda: setattr(proxy, "how", THERE))
        result = run.start()

    assert result is not None
    assert state_of(run.flow_run_id()) == "COMPLETED"
    (note,) = [note for note in run.live.notes if "Prefect server" in note]
    assert note.startswith("The Prefect server did not answer for a time while the run ended.")


def test_show_tells_a_server_that_is_back_how_the_run_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _untold(tmp_path)
    show = ["show", "r", "--storage", str(tmp_path / "runs")]
    assert main(show) == 0
    assert state_of(run.flow_run_id()) == "RUNNING", "its process could be about to tell it"
    monkeypatch.setattr(runs, "ENDS_WITHIN_SEC", 0.0)
    capsys.readouterr()

    assert main(show) == 0

    assert state_of(run.flow_run_id()) == "COMPLETED"
    assert f"Its flow run {run.flow_run_id()} is Completed now." in "".join(capsys.readouterr())
    assert main(show) == 0
    assert "Completed now" not in "".join(capsys.readouterr())


def test_the_next_start_tells_a_server_that_is_back_how_the_one_before_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _untold(tmp_path)
    run.live = LiveRun()
    monkeypatch.setattr(server_calls, "LAST_STATE_SEC", ENOUGH_SEC)

    result = run.start()

    assert result is not None
    assert result.completed_lines == LINES
    assert [state_of(run.flow_run_id(start)) for start in (0, 1)] == ["COMPLETED", "COMPLETED"]
    assert run.executed() == Counter(range(LINES))


def _untold(folder: Path) -> Run:
    """A run that has ended, and that its server still shows as running."""
    run = Run(folder)
    with server_becomes(KILLED, LAST_STATE, run):
        run.start()
    assert state_of(run.flow_run_id()) == "RUNNING"
    return run


def test_a_run_that_fails_says_what_the_server_does_not_know(tmp_path: Path) -> None:
    run = Run(tmp_path)
    (tmp_path / "data.jsonl").write_text("{")

    with server_becomes(KILLED, LAST_STATE, run), pytest.raises(Exception, match=r"data\.jsonl") as caught:
        run.start()

    assert "It does not know that the run has ended as Failed" in str(caught.value)


def test_a_run_of_a_deployment_raises_what_could_not_be_told(tmp_path: Path) -> None:
    """Prefect starts its process, and reads from its end that something was wrong."""
    run = Run(tmp_path)
    run_it: Callable[..., Any] = run_flow

    with (
        server_becomes(FROZEN, LINE, run),
        pytest.raises(PrefectServerError, match="does not know that the run has ended as Completed"),
    ):
        asyncio.run(run_it(batch_run, parameters=run.parameters))
    assert run.executed() == Counter(range(LINES))
    assert run.outputs() == list(range(LINES))
