"""`batchflow verify`, `copy`, `export`, `delete` and `compact`, as typed."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from bare_run import bare_run, without_prefect
from stored_run import stored_run

from prefect_batchflow.blocks import RunStorageBlock
from prefect_batchflow.cli.care import _with_storage
from prefect_batchflow.cli.commands import main
from prefect_batchflow.storage.earlier import require_manifest
from prefect_batchflow.storage.keys import RunKeys
from prefect_batchflow.storage.lease import Lease
from prefect_batchflow.storage.manifest import write_manifest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Type a command about a storage with one run, `nightly`."""
    files = RunStorageBlock(url=str(tmp_path / "runs"))
    asyncio.run(stored_run(files, "nightly"))

    def run(*words: str) -> tuple[int, str, str]:
        status = main([*words, "--storage", str(tmp_path / "runs")])
        out, err = capsys.readouterr()
        return status, out, " ".join(err.split())

    return run


Typed = Any


def test_verify(typed: Typed, tmp_path: Path) -> None:
    status, out, _ = typed("verify", "nightly")
    assert (status, out) == (
        0, "Run nightly: 4 completed, 1 failed, 0 not started, 5 lines in all. Nothing is wrong.\n",
    )  # fmt: skip
    status, out, _ = typed("verify", "nightly", "--json")
    assert (status, json.loads(out)["is_whole"]) == (0, True)
    (tmp_path / "runs" / "nightly" / "outputs.jsonl").write_text("")
    status, _, err = typed("verify", "nightly")
    assert status == 1
    resume = f"batchflow resume nightly --storage {tmp_path / 'runs'}"
    assert f"outputs.jsonl has 0 lines, but the result counts 4. `{resume}` writes the file again." in err
    (tmp_path / "runs" / "nightly" / "batch_result.json").unlink()
    status, out, _ = typed("verify", "nightly")
    assert (status, f"It has not finished: {resume}\n" in out) == (3, True)


@pytest.mark.parametrize("storage", ["sftp://bob:canary12345@h.example/runs", "https://h.example/runs?sig=canary12345"])
def test_an_advised_command_has_no_password(storage: str) -> None:
    text = _with_storage("`batchflow resume nightly` writes the file again.", "nightly", storage)
    assert "--storage" in text
    assert "canary" not in text


@pytest.mark.programs
class TestVerifyWithData:
    """`verify` compares the inputs of records with the data, if it can."""

    @pytest.fixture
    def data(self, tmp_path: Path) -> Path:
        """The data of a run `squares` of three lines."""
        data, flow = tmp_path / "rows.jsonl", tmp_path / "squares.py"
        data.write_text("".join(f'{{"n": {n}}}\n' for n in range(3)))
        flow.write_text("def main(n: int) -> int: return n * n\n")
        with without_prefect():
            bare_run(
                lambda inputs: {"square": inputs["n"] ** 2},
                flow=f"{flow}:main",
                data=str(data),
                inputs_mapping={"n": "${data.n}"},
                storage=str(tmp_path / "runs"),
                run_id="squares",
            )
        return data

    def test_the_records_have_the_inputs_of_the_data(self, typed: Typed, data: Path) -> None:
        status, out, err = typed("verify", "squares")
        assert (status, err) == (0, "")
        assert out.endswith("Nothing is wrong. 3 records have the inputs of the data.\n")

    def test_data_that_moved_is_given(self, typed: Typed, data: Path) -> None:
        moved = data.rename(data.with_name("moved.jsonl"))
        status, _, err = typed("verify", "squares")
        assert status == 0
        assert "The records were not compared with the data: " in err
        assert str(data) in err
        status, out, _ = typed("verify", "squares", "--data", str(moved), "--json")
        assert (status, json.loads(out)["compared"]) == (0, 3)

    def test_other_data_is_not_a_fault_of_the_run(self, typed: Typed, data: Path) -> None:
        data.write_text('{"n": 9}\n' * 3)
        status, _, err = typed("verify", "squares")
        assert status == 0
        assert f"it has changed since the run: source 'data' ({data})" in err

    def test_records_of_other_inputs_are_a_fault(self, typed: Typed, data: Path, tmp_path: Path) -> None:
        """As if the manifest of another run with the same name was put there."""
        data.write_text('{"n": 0}\n{"n": 7}\n{"n": 2}\n')

        digest = hashlib.sha256(data.read_bytes()).hexdigest()[:32]

        async def put_manifest() -> None:
            files, keys = RunStorageBlock(url=str(tmp_path / "runs")), RunKeys("squares")
            manifest = await require_manifest(files, keys)
            prints = {**manifest.fingerprints, "data:data": digest}
            await write_manifest(files, keys, manifest.model_copy(update={"fingerprints": prints}))

        asyncio.run(put_manifest())
        status, _, err = typed("verify", "squares")
        assert status == 1
        assert "The records of line 1 are of other inputs than the data has." in err

    def test_a_flow_that_is_gone_is_said(self, typed: Typed, data: Path) -> None:
        data.with_name("squares.py").unlink()
        status, _, err = typed("verify", "squares")
        assert status == 0
        assert "were not compared with the data: " in err
        assert "squares.py" in err

    def test_a_source_that_the_run_does_not_have_is_refused(self, typed: Typed, data: Path) -> None:
        status, _, err = typed("verify", "squares", "--data", f"other={data}")
        assert status == 2
        assert "has no data source 'other'. It has data." in err


def test_copy_and_delete(typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert typed("copy", "nightly", str(tmp_path / "copies"))[0] == 0
    assert (tmp_path / "copies" / "nightly" / "outputs.jsonl").read_text().count("\n") == 4
    status, _, err = typed("delete", "nightly")
    assert status == 2
    assert "There is no terminal to answer at. Give -y to delete it." in err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: "n")
    assert typed("delete", "nightly")[:2] == (0, "Nothing was deleted.\n")
    assert typed("delete", "nightly", "-y")[0] == 0
    assert not (tmp_path / "runs" / "nightly").exists()


def without(run: Path, *names: str) -> None:
    for name in names:
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def after_a_killed_delete(run: Path) -> None:
    without(run, *(path.name for path in run.iterdir()))
    (run / "leases").mkdir()
    (run / "leases" / "000001.json").write_text('{"released": true}')
    (run / "lock").touch()


def after_a_killed_copy(run: Path) -> None:
    without(run, "manifest.json", "outputs.jsonl")
    (run / ".writing-0123456789abcdef").touch()


def without_manifests(run: Path) -> None:
    without(run, "manifest.json", "manifests")


def with_a_damaged_manifest(run: Path) -> None:
    without(run, "manifests")
    (run / "manifest.json").write_text("{")


REST = [after_a_killed_delete, after_a_killed_copy, without_manifests, with_a_damaged_manifest]


@pytest.mark.parametrize("lose", REST)
def test_what_is_left_of_a_run_can_be_deleted(typed: Typed, tmp_path: Path, lose: Callable[[Path], object]) -> None:
    run = tmp_path / "runs" / "nightly"
    lose(run)

    status, out, err = typed("delete", "nightly", "-y")

    assert (status, run.exists()) == (0, False), err
    assert "Deleted" in out


def test_a_folder_that_is_no_run_is_not_deleted(typed: Typed, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "mine"
    (folder / "images").mkdir(parents=True)
    (folder / "thesis.tex").touch()

    status, _, err = typed("delete", "mine", "-y")

    assert (status, (folder / "thesis.tex").exists()) == (2, True)
    assert "There is no run 'mine'" in err


@pytest.mark.parametrize("words", [["verify"], ["copy", "/elsewhere"], ["export"], ["delete", "-y"], ["compact"]])
def test_a_run_that_is_not_there_is_refused_by_name(typed: Typed, words: list[str]) -> None:
    status, _, err = typed(words[0], "nightli", *words[1:])
    assert status == 2
    assert "There is no run 'nightli' in" in err
    assert "Did you mean nightly?" in err


@pytest.mark.parametrize("words", [["verify"], ["copy", "/elsewhere"], ["delete", "-y"], ["compact"]])
def test_a_run_that_is_running_is_refused_by_name(typed: Typed, tmp_path: Path, words: list[str]) -> None:
    async def held() -> tuple[int, str, str]:
        async with Lease(RunStorageBlock(url=str(tmp_path / "runs")), RunKeys("nightly")):
            answer: tuple[int, str, str] = await asyncio.to_thread(typed, words[0], "nightly", *words[1:])
            return answer

    status, _, err = asyncio.run(held())
    assert status == 2
    assert "The run 'nightly' in" in err
    assert "is running" in err


def test_export(typed: Typed, tmp_path: Path) -> None:
    status, out, _ = typed("export", "nightly")
    assert (status, [json.loads(line)["line_number"] for line in out.splitlines()]) == (0, [0, 1, 2, 3, 4])
    status, out, _ = typed("export", "nightly", "--format", "csv", "--output", str(tmp_path / "t.csv"), "--json")
    assert (status, json.loads(out)["rows"]) == (0, 5)
    assert (tmp_path / "t.csv").read_text().startswith("line_number,status,inputs.n,outputs.n,error,")
    assert typed("export", "nightly", "--format", "parquet")[0] == 2
    assert typed("export", "nightly", "--output", str(tmp_path))[0] == 2


@pytest.mark.parametrize("how", ["damaged", "gone"])
def test_an_export_that_lacks_lines_is_no_success(typed: Typed, tmp_path: Path, how: str) -> None:
    segment = min((tmp_path / "runs" / "nightly" / "records").iterdir())
    segment.unlink() if how == "gone" else segment.write_bytes(b"")
    status, out, err = typed("export", "nightly")
    assert (status, len(out.splitlines())) == (1, 3)
    assert "The run counts 5 lines that have ended, but 3 have a sound record and are in the table" in err
    assert ("the file is empty" in err) == (how == "damaged")


def test_an_export_does_not_overwrite_files_of_the_run(typed: Typed, tmp_path: Path) -> None:
    outputs = tmp_path / "runs" / "nightly" / "outputs.jsonl"
    before = outputs.read_bytes()
    status, _, err = typed("export", "nightly", "--output", str(outputs))
    assert (status, outputs.read_bytes()) == (2, before)
    assert "is in the folder of the run itself. Give another file." in err
    assert typed("verify", "nightly")[0] == 0


def test_a_run_whose_manifest_is_lost_can_be_deleted(typed: Typed, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "nightly"
    (folder / "manifest.json").write_text("{")
    (folder / "manifests" / "0001.json").unlink()
    status, _, err = typed("delete", "nightly")
    assert (status, "Delete run nightly with all that is left of it in" in err) == (2, True)
    assert typed("delete", "nightly", "-y")[0] == 0
    assert not folder.exists()


def test_compact(typed: Typed) -> None:
    assert typed("compact", "nightly")[:2] == (0, "Run nightly: 3 record files are 1 now.\n")
    status, out, _ = typed("compact", "nightly", "--json")
    assert (status, json.loads(out)) == (0, {"run_id": "nightly", "segments_before": 1, "segments": 1})
    assert typed("verify", "nightly")[0] == 0
