"""What a storage tells of a run's earlier starts, also when its manifest is lost: their number, and the name in its records."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from outcomes import outcome_of
from stored_run import manifest_of

from prefect_batchflow.storage import retries
from prefect_batchflow.storage.earlier import earlier_starts, identity_of
from prefect_batchflow.storage.manifest import Manifest, Session, write_manifest
from prefect_batchflow.storage.records import RunRecords

if TYPE_CHECKING:
    from prefect_batchflow.blocks import RunStorageBlock
    from prefect_batchflow.storage.keys import RunKeys

pytestmark = pytest.mark.anyio

NOW = Session(started_at="2026-01-03T00:00:00+00:00", prefect_flow_run_id=None, versions={})
NAME = "run-1/0123456789ab"


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "LOOK_AGAIN_SEC", (0.0,))


def manifest_with(sessions: int, identity: str = NAME) -> Manifest:
    started = [NOW.model_copy(update={"started_at": f"2026-01-02T00:00:0{n}+00:00"}) for n in range(sessions)]
    return manifest_of("run-1", sessions=started, identity=identity)


async def written(files: RunStorageBlock, keys: RunKeys, sessions: int, *records_of: int, name: str = NAME) -> None:
    """A manifest of so many starts, if any, and a segment of each of these sessions."""
    if sessions:
        await write_manifest(files, keys, manifest_with(sessions))
    for session in records_of:
        await RunRecords(files, keys, session, run=name).append([outcome_of(session)])


@pytest.mark.parametrize(
    ("known", "records", "number"),
    [(0, [], 1), (1, [], 2), (2, [1], 3), (2, [1, 2], 3), (1, [1, 3], 4), (0, [2], 3), (0, [1, 4], 5)],
    ids=[
        "a first start", "a second start", "a start without records", "a third start", "an old manifest",
        "a lost manifest", "a lost manifest of several starts",
    ],
)  # fmt: skip
async def test_no_number_of_a_start_comes_twice(
    remote: RunStorageBlock, keys: RunKeys, known: int, records: list[int], number: int
) -> None:
    """Records of the higher number count, so those of a start that counts from 1 again would lose against all older ones."""
    await written(remote, keys, known, *records)

    sessions = (await earlier_starts(remote, keys)).sessions(NOW)

    assert len(sessions) == number
    if known and max(records, default=0) <= known:  # otherwise it is an old one, which tells nothing
        assert sessions[:known] == manifest_with(known).sessions
    assert sessions[-1] == NOW


@pytest.mark.parametrize(
    ("known", "records", "damage", "is_lost"),
    [
        (0, [], "", False),
        (0, [0], "", False),
        (0, [1], "", True),
        (1, [1], "", False),
        (1, [1], "manifest.json", False),
        (1, [1], "both", True),
        (1, [], "both", True),
    ],
    ids=[
        "a first start", "only lines of another run", "gone", "there", "damaged, with a kept one", "both damaged",
        "both damaged, and no record",
    ],
)  # fmt: skip
async def test_a_manifest_is_lost_if_there_are_traces_of_a_start(
    remote: RunStorageBlock, keys: RunKeys, known: int, records: list[int], damage: str, is_lost: bool
) -> None:
    await written(remote, keys, known, *records)
    for key in {"": [], "manifest.json": [keys.manifest], "both": [keys.manifest, keys.kept_manifest(1)]}[damage]:
        await remote.write_path(key, b'{"half')

    starts = await earlier_starts(remote, keys)

    assert bool(starts.lost) == is_lost
    assert (starts.manifest is None) == (is_lost or not known)
    assert bool(starts.problem) == (is_lost or bool(damage))


async def test_one_stale_answer_is_no_lost_manifest(
    remote: RunStorageBlock, keys: RunKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    await written(remote, keys, 1, 1)
    block, left = type(remote), [keys.manifest, keys.manifests]
    really_read, really_list = block.read_path, block.list_names

    async def read_path(self: RunStorageBlock, path: str) -> bytes:
        if path in left:
            left.remove(path)
            raise FileNotFoundError(path)
        return await really_read(self, path)

    async def list_names(self: RunStorageBlock, folder: str) -> list[str]:
        names = await really_list(self, folder)
        if folder in left:
            left.remove(folder)
            return []
        return names

    monkeypatch.setattr(block, "read_path", read_path)
    monkeypatch.setattr(block, "list_names", list_names)

    starts = await earlier_starts(remote, keys)

    assert left == []
    assert (starts.manifest, starts.lost) == (manifest_with(1), "")


class TestIdentity:
    async def test_it_stays_from_start_to_start(self, remote: RunStorageBlock, keys: RunKeys) -> None:
        await written(remote, keys, 2, 1, 2)
        assert await identity_of(remote, keys, await earlier_starts(remote, keys)) == (NAME, 0)

    async def test_a_lost_one_is_that_of_its_sound_segments(self, remote: RunStorageBlock, keys: RunKeys) -> None:
        await written(remote, keys, 0, 1, name="run-2/of a copied file")
        await written(remote, keys, 0, 2, 3)
        newest = next(name for name in await RunRecords(remote, keys, 0).segments() if name.session == 3)
        await remote.write_path(keys.segment(newest.name), b"{")

        assert await identity_of(remote, keys, await earlier_starts(remote, keys)) == (NAME, 0)

    async def test_two_runs_have_two(self, remote: RunStorageBlock, keys: RunKeys) -> None:
        starts = await earlier_starts(remote, keys)
        found = {(await identity_of(remote, keys, starts))[0] for _ in range(2)}
        assert len(found) == 2
        assert all(name.startswith("run-1/") for name in found)

    @pytest.mark.parametrize("manifest", [True, False], ids=["with a manifest", "lost manifest"])
    async def test_segments_of_an_older_version_stay_without_one(
        self, remote: RunStorageBlock, keys: RunKeys, manifest: bool
    ) -> None:
        if manifest:
            await write_manifest(remote, keys, manifest_with(2, identity=""))
        await written(remote, keys, 0, 1, 2, name="")

        name, unnamed_until = await identity_of(remote, keys, await earlier_starts(remote, keys))

        assert unnamed_until == 2
        index, damage = await RunRecords(remote, keys, 3, run=name, unnamed_until=unnamed_until).scan()
        assert (set(index.lines), damage) == ({1, 2}, [])
