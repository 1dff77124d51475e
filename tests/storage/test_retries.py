"""Calls of the run storage that fail are made again while their error can pass; nothing that was there becomes absent."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import json
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from outcomes import outcome_of
from pydantic import SecretStr
from scripted_storage import ERRORS, LIES, HttpError, Script, ScriptedFileSystem, UnknownClientError, scripted

from prefect_batchflow.blocks import RunStorageBlock
from prefect_batchflow.exceptions import InvalidOptionError, StorageError
from prefect_batchflow.storage import lease, retries
from prefect_batchflow.storage.keys import RunKeys
from prefect_batchflow.storage.lease import Lease
from prefect_batchflow.storage.records import RunRecords
from prefect_batchflow.storage.retries import Kind, kind_of, read_sound

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KEYS = RunKeys("run-1")
N_LINES = 2

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "DELAYS_SEC", (0.0,) * 7)


def new_storage() -> RunStorageBlock:
    return RunStorageBlock(url=f"scripted://{uuid.uuid4().hex}/runs")


async def fresh_run(files: RunStorageBlock, executed: list[int]) -> None:
    """What a run does with its storage, without the rest of a run."""
    async with Lease(files, KEYS):
        records = RunRecords(files, KEYS, session=1)
        index, damaged = await records.scan()
        assert damaged == []
        for number in range(N_LINES):
            if number not in index.lines:
                executed.append(number)
                await records.append([outcome_of(number)])
        merged = [stored.receipt.line_number async for stored, _ in records.newest()]
        assert merged == list(range(N_LINES))


class TestOneFault:
    """Each fault at the n-th call, for n = 1, 2, 3 … until none fires."""

    @pytest.mark.parametrize("fault", [*ERRORS, *LIES])
    async def test_a_fresh_run_and_a_resume_execute_each_line_once(self, fault: str) -> None:
        n, fired = 0, True
        while fired:
            n += 1
            files, executed = new_storage(), list[int]()
            with scripted(Script(fault, n)) as script:
                await fresh_run(files, executed)
                # A new block, as another process has it: it knows no key.
                await fresh_run(RunStorageBlock(url=files.url), executed)
            fired = script.fired
            assert executed == list(range(N_LINES)), f"{fault} at call {n}"
        assert n > 5, "the script struck no call"


class TestLasting:
    @pytest.mark.parametrize(
        ("fault", "lasts", "within_sec", "tries"),
        [
            ("503", False, 30.0, 2),
            ("503", True, 30.0, 8),
            ("503", True, -1.0, 2),
            ("timeout", True, 30.0, 8),
            ("403", True, 30.0, retries.LOOKS),
            ("client error", True, 30.0, retries.LOOKS),
            ("full", True, 30.0, 1),
        ],
        ids=[
            "one that passes", "one that lasts", "no time left", "time-outs", "forbidden", "unknown", "a full disk",
        ],
    )  # fmt: skip
    async def test_a_call_is_tried_as_often_as_its_error_deserves(
        self, monkeypatch: pytest.MonkeyPatch, fault: str, lasts: bool, within_sec: float, tries: int
    ) -> None:
        monkeypatch.setattr(retries, "PASSES_WITHIN_SEC", within_sec)
        monkeypatch.setitem(ERRORS, "full", lambda: OSError(errno.ENOSPC, "No space left on device"))
        script = Script(fault, 1, "write", lasts=lasts)
        with scripted(script), contextlib.suppress(OSError, HttpError, UnknownClientError):
            # Without a bound it would go on for as long as the storage is away.
            async with asyncio.timeout(10):
                await new_storage().write_path("run-1/a", b"")
        assert len(script.calls) == tries

    @pytest.mark.programs
    @pytest.mark.parametrize("kind", ["read", "write", "list"])
    @pytest.mark.parametrize("fault", ["403", "503"])
    async def test_an_error_that_lasts_is_one_clear_error_and_no_line_more(
        self, fault: str, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The next start is another process, which sees that the holder of a lease that stayed behind is gone.
        monkeypatch.setattr(lease, "is_dead", lambda _: True)
        n, fired = 0, True
        while fired:
            n += 1
            files, executed = new_storage(), list[int]()
            with scripted(Script(fault, n, kind, lasts=True)) as script:
                try:
                    await fresh_run(files, executed)
                except StorageError as exc:
                    assert "(tried " in str(exc)  # noqa: PT017
                    assert files.location("run-1") in str(exc)  # noqa: PT017
                fired = script.fired
            tried = len(executed)
            await fresh_run(RunStorageBlock(url=files.url), executed)
            again = set(executed[:tried]) & set(executed[tried:])
            assert len(again) <= 1, "only the line whose record was not acknowledged can run again"

    async def test_a_segment_that_was_written_is_never_absent(self) -> None:
        files = new_storage()
        name = await RunRecords(files, KEYS, session=1).append([outcome_of(0)])
        with scripted(Script("absent read", 1, lasts=True)), pytest.raises(StorageError, match="was listed or written"):
            await RunRecords(files, KEYS, session=1).read(name)

    async def test_a_segment_that_was_listed_by_another_process_is_never_absent(self) -> None:
        files = new_storage()
        await RunRecords(files, KEYS, session=1).append([outcome_of(0)])
        other = RunStorageBlock(url=files.url)
        with scripted(Script("absent read", 1, lasts=True)), pytest.raises(StorageError, match="was listed or written"):
            await RunRecords(other, KEYS, session=2).scan()

    async def test_a_key_that_is_in_the_listing_is_not_absent_although_nobody_listed_it_before(self) -> None:
        files = new_storage()
        await files.write_path("run-1/manifest.json", b"{}")
        other = RunStorageBlock(url=files.url)
        with scripted(Script("absent read", 1)):
            assert await other.read_path("run-1/manifest.json") == b"{}"

    async def test_a_key_that_is_in_no_listing_is_absent(self) -> None:
        with pytest.raises(FileNotFoundError):
            await new_storage().read_path("run-1/manifest.json")

    async def test_damage_that_two_looks_agree_on_is_damage(self) -> None:
        files = new_storage()
        await files.write_path("run-1/a.json", b'{"half')
        with scripted(Script("none", 0)) as script, pytest.raises(ValueError, match="Unterminated string"):
            await read_sound(files, "run-1/a.json", json.loads)
        assert len(script.calls) == 2

    async def test_a_key_that_another_process_deleted_leaves_the_listing(self) -> None:
        files = new_storage()
        for name in ("a", "b"):
            await files.write_path(f"run-1/{name}", b"")
        await RunStorageBlock(url=files.url).delete_path("run-1/a")

        assert await files.list_names("run-1") == ["b"]

    async def test_deleting_what_is_not_there_is_no_error(self) -> None:
        files = new_storage()
        await files.write_path("run-1/a", b"")
        await files.delete_path("run-1/a")
        await files.delete_path("run-1/a")
        assert await files.list_names("run-1") == []

    async def test_a_lost_answer_to_a_conditional_write_is_not_another_ones_key(self) -> None:
        files = new_storage()
        with scripted(Script("lost answer", 1)):
            await files.create_path("run-1/a", b"mine")
        with pytest.raises(FileExistsError):
            await files.create_path("run-1/a", b"other")

    async def test_a_key_of_another_process_stays_its_own_after_a_failed_try(self) -> None:
        files = new_storage()
        await files.create_path("run-1/a", b"other")
        with scripted(Script("503", 1, "write")), pytest.raises(FileExistsError):
            await files.create_path("run-1/a", b"mine")
        assert await files.read_path("run-1/a") == b"other"

    @pytest.mark.parametrize("fault", ERRORS)
    async def test_a_folder_that_cannot_be_listed_is_not_empty(self, fault: str) -> None:
        files = new_storage()
        await files.write_path("run-1/records/a", b"")
        other = RunStorageBlock(url=files.url)
        with scripted(Script(fault, 1, "list", lasts=True)):
            for block in (files, other):
                with pytest.raises(type(ERRORS[fault]())):
                    await block.list_names("run-1/records")
                with pytest.raises(type(ERRORS[fault]())):
                    await other.read_path("run-1/records/b")

    async def test_a_short_download_is_made_again(self, tmp_path: Path) -> None:
        files = new_storage()
        await files.write_path("run-1/a", b"0123456789")
        with scripted(Script("short read", 1)):
            await files.get_file("run-1/a", tmp_path / "a")
        assert (tmp_path / "a").read_bytes() == b"0123456789"


class TestFailing:
    async def test_listeners_hear_that_the_storage_fails_and_that_it_works(self) -> None:
        class Listener:
            def __init__(self) -> None:
                self.heard: list[bool] = []

            def hear(self, is_failing: bool) -> None:
                self.heard.append(is_failing)

        files, listener, gone = new_storage(), Listener(), Listener()
        files.when_failing(listener.hear)
        files.when_failing(gone.hear)
        del gone
        with scripted(Script("503", 1)):
            await asyncio.gather(*(files.write_path(f"run-1/{name}", b"") for name in "abc"))
        assert listener.heard == [True, False]

    async def test_a_stopped_run_does_not_wait_for_the_next_try(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(retries, "DELAYS_SEC", (1000.0,))
        monkeypatch.setattr(retries, "PASSES_WITHIN_SEC", 10_000.0)
        files = new_storage()
        with scripted(Script("503", 1, lasts=True)) as script:
            write = asyncio.ensure_future(files.write_path("run-1/a", b""))
            while not script.fired:  # noqa: ASYNC110 - a file system in a thread has no event of this loop
                await asyncio.sleep(0)
            write.cancel()
            with pytest.raises(asyncio.CancelledError):
                await write


def _caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


class _Boto(Exception):  # noqa: N818 - a stand-in
    def __init__(self, status: int) -> None:
        super().__init__(f"An error occurred ({status})")
        self.response = {"Error": {"Code": "X"}, "ResponseMetadata": {"HTTPStatusCode": status}}


class _Google(Exception):  # noqa: N818
    def __init__(self, code: int | str) -> None:
        super().__init__("google")
        self.code = code


class ServerDisconnectedError(Exception):
    """As aiohttp has one."""


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: TimeoutError(), Kind.PASSES),
        (lambda: ConnectionRefusedError(errno.ECONNREFUSED, "refused"), Kind.PASSES),
        (lambda: OSError(errno.EBUSY, "SlowDown"), Kind.PASSES),
        (lambda: OSError(errno.EMFILE, "Too many open files"), Kind.PASSES),
        (lambda: HttpError(429), Kind.PASSES),
        (lambda: HttpError(500), Kind.PASSES),
        (lambda: HttpError(503), Kind.PASSES),
        (lambda: _Boto(502), Kind.PASSES),
        (lambda: _Google("503"), Kind.PASSES),
        (lambda: _caused(OSError(errno.EIO, "x"), _Boto(504)), Kind.PASSES),
        (lambda: ServerDisconnectedError(), Kind.PASSES),
        (lambda: EOFError(), Kind.PASSES),
        (lambda: PermissionError("Forbidden"), Kind.MAY_PASS),
        (lambda: _caused(PermissionError("Forbidden"), _Boto(403)), Kind.MAY_PASS),
        (lambda: HttpError(401), Kind.MAY_PASS),
        (lambda: OSError(errno.EIO, "Input/output error"), Kind.MAY_PASS),
        (lambda: UnknownClientError("x"), Kind.MAY_PASS),
        (lambda: FileNotFoundError("The specified bucket does not exist"), Kind.LASTS),
        (lambda: HttpError(404), Kind.LASTS),
        (lambda: HttpError(507), Kind.LASTS),
        (lambda: OSError(errno.ENOSPC, "No space left on device"), Kind.LASTS),
        (lambda: OSError(errno.EDQUOT, "Disk quota exceeded"), Kind.LASTS),
        (lambda: OSError(errno.EROFS, "Read-only file system"), Kind.LASTS),
        (lambda: OSError(errno.EFBIG, "File too large"), Kind.LASTS),
        (lambda: FileExistsError("a"), Kind.LASTS),
        (lambda: NotImplementedError(), Kind.LASTS),
        (lambda: OSError(errno.ENOSYS, "no conditional writes"), Kind.LASTS),
        (lambda: InvalidOptionError("x"), Kind.LASTS),
    ],
    ids=lambda value: "" if isinstance(value, Kind) else repr(value())[:40],
)
def test_what_can_pass(make: Callable[[], Any], kind: Kind) -> None:
    assert kind_of(make()) is kind


def test_a_folder_of_this_machine_that_may_not_be_read_stays_so() -> None:
    assert kind_of(PermissionError(errno.EACCES, "Permission denied"), is_local=True) is Kind.LASTS


SECRET = "q7Zk+v/9=a%b"  # noqa: S105 - none


@pytest.mark.parametrize(
    "written",
    [SECRET, "q7Zk%2Bv%2F9%3Da%25b", base64.b64encode(SECRET.encode()).decode(), repr(SECRET), json.dumps(SECRET)],
    ids=["as it is", "percent", "base64", "repr", "json"],
)
@pytest.mark.parametrize("option", ["secret", "account_key", "sas_token", "connection_string", "password", "pkey"])
async def test_an_error_of_the_storage_tells_no_secret_of_its_options(
    option: str, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise PermissionError(f"403 for https://host/x?sig={written}&y=1")

    files = RunStorageBlock(
        url=f"scripted://{uuid.uuid4().hex}/runs",
        storage_options={option: SecretStr(SECRET), "endpoint_url": SecretStr("http://127.0.0.1:9000")},
    )
    monkeypatch.setattr(ScriptedFileSystem, "ls", fails)
    with pytest.raises(StorageError, match="403 for https://host/x") as caught:
        await RunRecords(files, KEYS, session=1).scan()
    assert written not in str(caught.value)
    assert SECRET not in str(caught.value)


async def test_an_error_of_the_storage_tells_its_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise PermissionError("Cannot connect to http://127.0.0.1:9000/bucket as account-of-mine")

    options = {"endpoint_url": "http://127.0.0.1:9000", "account_name": "account-of-mine"}
    files = RunStorageBlock(
        url=f"scripted://{uuid.uuid4().hex}/runs",
        storage_options={name: SecretStr(value) for name, value in options.items()},
    )
    monkeypatch.setattr(ScriptedFileSystem, "ls", fails)
    with pytest.raises(StorageError, match=r"127\.0\.0\.1:9000/bucket as account-of-mine"):
        await RunRecords(files, KEYS, session=1).scan()


def test_the_password_in_a_url_is_in_no_message() -> None:
    with pytest.raises(InvalidOptionError) as caught:
        RunStorageBlock(url="nosuch://user:q7Zk-canary@host/runs")
    assert "q7Zk-canary" not in str(caught.value)
    assert "nosuch://user@host/runs" in str(caught.value)
