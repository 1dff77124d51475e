"""Care for runs on every kind of storage: whole, and cut short at any of its writes and then done again."""

from __future__ import annotations

import io
import itertools
import json
from typing import TYPE_CHECKING, Any

import pytest
from bare_run import bare_run, without_prefect
from pydantic import SecretStr
from stored_run import stored_run

from prefect_batchflow.blocks import RunStorageBlock
from prefect_batchflow.exceptions import RunNotFoundError
from prefect_batchflow.run import preparation
from prefect_batchflow.storage.care import compact_run, copy_run, delete_run, verify_run
from prefect_batchflow.storage.earlier import require_manifest
from prefect_batchflow.storage.export import export_records
from prefect_batchflow.storage.files import remove_unfinished_on_server
from prefect_batchflow.storage.keys import RunKeys
from prefect_batchflow.storage.records import records_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from backend_servers import Backend

    from prefect_batchflow.results.records import LineRecord
    from prefect_batchflow.storage.manifest import Manifest

pytestmark = [pytest.mark.backends, pytest.mark.anyio, pytest.mark.timeout(180)]

RUN = "nightly"
KEYS = RunKeys(RUN)
LINES = 6
SEGMENTS = 3


class CutError(BaseException):
    """The process ends here."""


def files_at(backend: Backend, folder: str = "") -> RunStorageBlock:
    """A folder of the storage, as a new process opens it."""
    options = {name: SecretStr(str(value)) for name, value in backend.options.items()}
    return RunStorageBlock(url=f"{backend.url}{folder}", storage_options=options)


async def rows_of(files: RunStorageBlock, manifest: Manifest) -> list[dict[str, Any]]:
    """The table that `export` writes."""

    async def newest() -> AsyncIterator[LineRecord]:
        async for _, record in records_of(files, KEYS, manifest).newest():
            yield record

    table = io.BytesIO()
    await export_records(newest(), "jsonl", table)
    return [json.loads(row) for row in table.getvalue().splitlines()]


async def cut_short(
    n: int, after: bool, monkeypatch: pytest.MonkeyPatch, call: Callable[..., Awaitable[object]], *arguments: Any
) -> bool:
    """Let a process end at its n-th write, before or after it is done. Whether there was one."""
    count = 0

    def cutting(really: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        async def write(self: RunStorageBlock, path: str, *rest: Any, **named: Any) -> None:
            nonlocal count
            count += "/leases/" not in path
            strikes = count >= n and "/leases/" not in path
            if strikes and not after:
                raise CutError
            await really(self, path, *rest, **named)
            if strikes:
                raise CutError

        return write

    with monkeypatch.context() as patch:
        for name in ("write_path", "put_file", "delete_path", "delete_folder", "move"):
            patch.setattr(RunStorageBlock, name, cutting(getattr(RunStorageBlock, name)))
        try:
            await call(*arguments)
        except CutError:
            return True
    return False


@pytest.fixture(params=[False, True], ids=["before the write", "after the write"])
def after(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


async def test_a_run_is_verified_exported_copied_compacted_and_deleted(backend: Backend) -> None:
    files, target = files_at(backend), files_at(backend, "/copies")
    manifest = await stored_run(files, RUN, LINES)
    rows = await rows_of(files, manifest)

    assert [row["line_number"] for row in rows] == list(range(LINES))
    assert (await verify_run(files, manifest)).wrong == []
    await copy_run(files, manifest, target)
    assert await compact_run(files, manifest) == (SEGMENTS, 1)
    for place in (files_at(backend), files_at(backend, "/copies")):
        assert (await verify_run(place, await require_manifest(place, KEYS))).wrong == []
        assert await rows_of(place, manifest) == rows
    await delete_run(files, RUN)
    assert await files_at(backend).list_names(RUN) == []
    with pytest.raises(RunNotFoundError):
        await require_manifest(files_at(backend), KEYS)
    assert await rows_of(target, manifest) == rows, "the copy stands by itself"


async def test_a_copy_that_is_cut_short_is_no_run_until_it_is_made_again(
    backend: Backend, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = await stored_run(files_at(backend), RUN, LINES)
    rows = await rows_of(files_at(backend), manifest)
    for n in itertools.count(1):
        files, target = files_at(backend), files_at(backend, f"/copies{n}")
        if not await cut_short(n, after, monkeypatch, copy_run, files, manifest, target):
            break
        there = files_at(backend, f"/copies{n}")
        if "manifest.json" not in await there.list_names(RUN):
            await copy_run(files_at(backend), manifest, there)
        assert (await verify_run(there, await require_manifest(there, KEYS))).wrong == []
        assert await rows_of(there, manifest) == rows
    assert n > SEGMENTS


async def test_compacting_that_is_cut_short_loses_no_record(
    backend: Backend, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in itertools.count(1):
        folder = f"/compact{n}"
        manifest = await stored_run(files_at(backend, folder), RUN, LINES)
        rows = await rows_of(files_at(backend, folder), manifest)
        was_cut = await cut_short(n, after, monkeypatch, compact_run, files_at(backend, folder), manifest)
        assert await rows_of(files_at(backend, folder), manifest) == rows, f"cut at write {n}"
        if not was_cut:
            break
        assert (await verify_run(files_at(backend, folder), manifest)).wrong == [], f"cut at write {n}"

        assert (await compact_run(files_at(backend, folder), manifest))[1] == 1

        assert await rows_of(files_at(backend, folder), manifest) == rows, f"cut at write {n}"
        assert (await verify_run(files_at(backend, folder), manifest)).wrong == []
    assert n > SEGMENTS


async def test_a_delete_that_is_cut_short_is_done_again(
    backend: Backend, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in itertools.count(1):
        folder = f"/delete{n}"
        other = await stored_run(files_at(backend, folder), "other", LINES)
        await stored_run(files_at(backend, folder), RUN, LINES)
        if not await cut_short(n, after, monkeypatch, delete_run, files_at(backend, folder), RUN):
            break
        left = files_at(backend, folder)
        if "manifest.json" not in await left.list_names(RUN):
            assert await left.list_names(KEYS.records) == [], f"the manifest goes last; cut at write {n}"

        await delete_run(files_at(backend, folder), RUN)

        assert await files_at(backend, folder).list_names(RUN) == []
        assert (await verify_run(files_at(backend, folder), other)).wrong == []
    assert n > SEGMENTS


def test_failed_lines_run_again_in_place(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    fails = {2, 4}

    def line(inputs: Any) -> dict[str, int]:
        begun.append(inputs["n"])
        if inputs["n"] in fails:
            raise RuntimeError("not yet")
        return {"square": inputs["n"] ** 2}

    async def open_storage(_: str) -> RunStorageBlock:
        return files_at(backend)

    monkeypatch.setattr(preparation, "open_storage", open_storage)
    (tmp_path / "squares.py").write_text("def main(n: int): ...\n")
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"n": {n}}}\n' for n in range(LINES)))
    parameters: dict[str, Any] = {
        "flow": f"{tmp_path / 'squares.py'}:main",
        "data": str(tmp_path / "rows.jsonl"),
        "inputs_mapping": {"n": "${data.n}"},
        "run_id": RUN,
        "storage": "the backend",
    }
    with without_prefect():
        assert bare_run(line, **parameters).failed_lines == 2
        fails.discard(2)
        assert bare_run(line, rerun="failed", **parameters).failed_lines == 1
        assert sorted(begun) == [0, 1, 2, 2, 3, 4, 4, 5]
        fails.clear()
        begun.clear()
        assert bare_run(line, rerun_lines="0,4", **parameters).completed_lines == LINES
    assert sorted(begun) == [0, 4]


@pytest.mark.parametrize("server", ["sftp"], indirect=True)
async def test_the_next_start_removes_unfinished_files_of_killed_processes(backend: Backend) -> None:
    files = files_at(backend)
    await stored_run(files, RUN, LINES)
    folders = (RUN, KEYS.records, KEYS.manifests)
    for folder in folders:
        await files.write_path(f"{folder}/.writing-0123456789ab", b"half")

    await remove_unfinished_on_server(files, folders)

    assert [name for folder in folders for name in await files.list_names(folder) if name.startswith(".writing-")] == []
    assert len(await files.list_names(KEYS.records)) == SEGMENTS
