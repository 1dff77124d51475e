"""The earlier starts of a run: no manifest but the newest one of the run itself is believed."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

import pytest
from outcomes import outcome_of
from stored_run import manifest_of

from prefect_batchflow.blocks import RunStorageBlock
from prefect_batchflow.exceptions import StorageError
from prefect_batchflow.storage import retries
from prefect_batchflow.storage.care import verify_run
from prefect_batchflow.storage.earlier import earlier_starts, identity_of, require_manifest
from prefect_batchflow.storage.keys import RunKeys
from prefect_batchflow.storage.manifest import Manifest, write_manifest
from prefect_batchflow.storage.records import RunRecords

pytestmark = pytest.mark.anyio
KEYS, OTHER = RunKeys("r"), RunKeys("other")
Change = Callable[[RunStorageBlock], Awaitable[object]]


@pytest.fixture(params=["local", "remote"])
def files(request: pytest.FixtureRequest) -> RunStorageBlock:
    block: RunStorageBlock = request.getfixturevalue(request.param)
    return block


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "LOOK_AGAIN_SEC", (0.0,))


@pytest.fixture
async def newest(files: RunStorageBlock) -> Manifest:
    """The manifest of the second start of a run; another run is beside it."""
    once = manifest_of("r", identity="r/1")
    twice = once.model_copy(update={"sessions": once.sessions * 2, "flow_name": "newer"})
    for manifest in (once, twice):
        session = len(manifest.sessions)
        await write_manifest(files, KEYS, manifest)
        await RunRecords(files, KEYS, session, run="r/1").append([outcome_of(session)])
    await write_manifest(files, OTHER, manifest_of("other", identity="other/2"))
    await RunRecords(files, OTHER, 9, run="other/2").append([outcome_of(n) for n in range(3)])
    return twice


async def copy(files: RunStorageBlock, source: str, target: str) -> None:
    await files.write_path(target, await files.read_path(source))


async def others_manifest(files: RunStorageBlock) -> None:
    await copy(files, OTHER.manifest, KEYS.manifest)


async def old_manifest(files: RunStorageBlock) -> None:
    await copy(files, KEYS.kept_manifest(1), KEYS.manifest)


async def edited_without_its_checksum(files: RunStorageBlock) -> None:
    content = json.loads(await files.read_path(KEYS.manifest))
    del content["sha256"]
    await files.write_path(KEYS.manifest, json.dumps(content | {"total_lines": 3}).encode())


async def nested_too_deep(files: RunStorageBlock) -> None:
    await files.write_path(KEYS.manifest, b"[" * 100_000)


async def no_copy(files: RunStorageBlock) -> None:
    await files.delete_path(KEYS.kept_manifest(2))


async def others_segment(files: RunStorageBlock) -> None:
    (name,) = await RunRecords(files, OTHER, 0).segments()
    await copy(files, OTHER.segment(name.name), KEYS.segment(name.name))


async def damaged_segment(files: RunStorageBlock) -> None:
    *_, name = await RunRecords(files, KEYS, 0).segments()
    await files.write_path(KEYS.segment(name.name), b"{")


WRONG: dict[str, tuple[Change, str]] = {
    "of another run": (others_manifest, "belongs to the run other/2, but the records belong to r/1."),
    "an old one": (old_manifest, "is an old one: start 1 wrote it, and there are records of start 2."),
    "edited, without its checksum": (edited_without_its_checksum, "somebody has edited it: its checksum is wrong."),
    "nested too deep": (nested_too_deep, "is damaged, or another version of prefect-batchflow wrote it"),
}


@pytest.mark.parametrize("how", WRONG)
async def test_a_copy_takes_the_place_of_a_wrong_manifest(files: RunStorageBlock, newest: Manifest, how: str) -> None:
    change, said = WRONG[how]
    await change(files)

    starts = await earlier_starts(files, KEYS)

    assert starts.manifest == newest == await require_manifest(files, KEYS)
    assert said in starts.problem
    assert f"{files.location(KEYS.kept_manifest(2))}, is used" in starts.problem
    assert any(said in text for text in (await verify_run(files, newest)).wrong)


@pytest.mark.usefixtures("newest")
@pytest.mark.parametrize("how", ["of another run", "an old one"])
async def test_without_the_copy_the_manifest_counts_as_lost(files: RunStorageBlock, how: str) -> None:
    change, said = WRONG[how]
    await change(files)
    await no_copy(files)
    if how == "of another run":
        await files.delete_path(KEYS.kept_manifest(1))

    starts = await earlier_starts(files, KEYS)

    assert starts.manifest is None
    assert said in starts.lost
    assert await identity_of(files, KEYS, starts) == ("r/1", 0)
    with pytest.raises(StorageError, match="run its flow and data again under its run id with on_change='reuse'"):
        await require_manifest(files, KEYS)


@pytest.mark.parametrize("change", [others_segment, damaged_segment])
async def test_a_single_wrong_segment_says_nothing_of_the_manifest(
    files: RunStorageBlock, newest: Manifest, change: Change
) -> None:
    await change(files)
    starts = await earlier_starts(files, KEYS)
    assert (starts.manifest, starts.problem) == (newest, "")


@pytest.mark.usefixtures("newest")
async def test_a_lost_name_is_not_that_of_a_segment_of_another_run(files: RunStorageBlock) -> None:
    await others_segment(files)
    for key in (KEYS.manifest, KEYS.kept_manifest(1), KEYS.kept_manifest(2)):
        await files.delete_path(key)
    assert await identity_of(files, KEYS, await earlier_starts(files, KEYS)) == ("r/1", 0)


@pytest.mark.usefixtures("newest")
async def test_a_renamed_run_has_the_name_of_its_folder(files: RunStorageBlock) -> None:
    for key in ("manifest.json", *(f"records/{name.name}" for name in await RunRecords(files, KEYS, 0).segments())):
        await copy(files, f"r/{key}", f"renamed/{key}")
    manifest = await require_manifest(files, RunKeys("renamed"))
    assert (manifest.run_id, manifest.identity) == ("renamed", "r/1")
    assert (await verify_run(files, manifest)).completed == 2
