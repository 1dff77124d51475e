"""Images of failed lines that lie on other machines: copied while there is time for it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from prefect_batchflow.images.forms import BASIC
from prefect_batchflow.storage import images
from prefect_batchflow.storage.images import ImageFiles, ImageInputs
from prefect_batchflow.storage.keys import RunKeys

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefect_batchflow.blocks import RunStorageBlock

pytestmark = pytest.mark.anyio

PNG = b"\x89PNG\r\n\x1a\n" + bytes(8)
FAR = "https://images.example/rows"


class Host:
    """The machine that has the images."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answers = threading.Event()

    def read(self, path: str, folder: str | None) -> bytes:
        assert folder == FAR
        self.asked.append(path)
        self.answers.wait(60)
        return PNG


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    host = Host()
    monkeypatch.setattr(images, "read_within", host.read)
    yield host
    host.answers.set()


def failed(*paths: str) -> Any:
    pictures = [{"data:image/png;path": path} for path in paths]
    return {"inputs": {"pictures": pictures}, "images": {"inputs": {"pictures": "data"}, "output": []}}


def files_of(local: RunStorageBlock, remote_sec: float) -> ImageFiles:
    return ImageFiles(local, RunKeys("r"), None, BASIC, ImageInputs({"data": FAR}, remote_sec=remote_sec))


async def test_they_are_copied(local: RunStorageBlock, host: Host) -> None:
    host.answers.set()
    copies = files_of(local, 60)

    row = await copies.with_inputs(failed("a.png"))

    [picture] = row["inputs"]["pictures"]
    assert await local.read_path(f"r/{picture['data:image/png;path']}") == PNG
    assert copies.left == 0


async def test_a_host_that_does_not_answer_costs_the_time_once(local: RunStorageBlock, host: Host) -> None:
    copies = files_of(local, 0.05)

    first, second = failed("a.png", "b.png"), failed("c.png")
    assert [await copies.with_inputs(first), await copies.with_inputs(second)] == [first, second]

    assert (host.asked, copies.left) == (["a.png"], 3)


async def test_a_run_that_is_stopped_asks_for_none(local: RunStorageBlock, host: Host) -> None:
    copies = files_of(local, 0)

    row = failed("a.png")
    assert await copies.with_inputs(row) == row

    assert (host.asked, copies.left) == ([], 1)
