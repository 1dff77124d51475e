"""Images in shared folders: `image_roots` behind every door, for the flow, the aggregation, failed lines and a resume."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import fsspec
import pytest

from prefect_batchflow import BatchEngine, batch_run
from prefect_batchflow.cli.commands import main
from prefect_batchflow.exceptions import InvalidOptionError
from prefect_batchflow.inputs.places import located_image_roots
from prefect_batchflow.run.roots import check_roots
from prefect_batchflow.settings import BatchRequest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.programs, pytest.mark.usefixtures("prefect_server")]

PNG = b"\x89PNG\r\n\x1a\n"
YAML = """
inputs:
  picture: {type: image}
outputs:
  size: {reference: "${look.output}"}
nodes:
- {name: look, type: python, source: {type: code, path: look.py}, inputs: {picture: "${inputs.picture}"}}
- name: total
  type: python
  aggregation: true
  source: {type: code, path: total.py}
  inputs: {pictures: "${inputs.picture}"}
"""
LOOK = """
from pathlib import Path
from promptflow.core import tool
from promptflow.contracts.multimedia import Image
@tool
def look(picture: Image) -> int:
    if len(picture) == 12 and not Path("healed").exists():
        raise ValueError("not yet")
    return len(picture)
"""
TOTAL = """
from promptflow.core import tool, log_metric
@tool
def total(pictures: list):
    log_metric("bytes", sum(map(len, pictures)))
    return 1
"""


class Place:
    """A flow, data with one image beside it, and images in a shared folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.flow, self.shared, self.storage = folder / "flow", folder / "shared", folder / "runs"
        for place in (self.flow, self.shared / "deep", folder / "data"):
            place.mkdir(parents=True)
        for name, text in {"flow.dag.yaml": YAML, "look.py": LOOK, "total.py": TOTAL}.items():
            (self.flow / name).write_text(text)
        (folder / "data" / "own.png").write_bytes(PNG + bytes(2))
        (self.shared / "one.png").write_bytes(PNG + bytes(3))
        (self.shared / "deep" / "two.png").write_bytes(PNG + bytes(4))
        (folder / "secret.png").write_bytes(PNG + bytes(99))
        self.data = folder / "data" / "rows.jsonl"
        self.rows("own.png", str(self.shared / "one.png"), "deep/two.png", "../shared/one.png")

    def rows(self, *paths: str) -> None:
        self.data.write_text("".join(json.dumps({"picture": {"data:image/png;path": path}}) + "\n" for path in paths))

    def outputs(self, name: str = "output.jsonl") -> list[Any]:
        return [json.loads(row) for row in (self.folder / "out" / name).read_text().splitlines()]

    def sizes(self) -> dict[int, int]:
        return {row["line_number"]: row["size"] for row in self.outputs()}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


SIZES = {0: 10, 1: 11, 2: 12, 3: 11}


def test_every_door_takes_roots(place: Place) -> None:
    (place.flow / "healed").touch()
    out = place.folder / "out"
    common: dict[str, Any] = {"flow": str(place.flow), "storage": str(place.storage), "output_dir": str(out)}

    for roots in (str(place.shared), [place.shared], ["../shared", "../data"]):
        engine = BatchEngine(place.flow, run_storage_url=str(place.storage), image_roots=roots)
        result = engine.run({"data": place.data}, output_dir=out)
        assert place.sizes() == SIZES
        assert result.metrics == {"bytes": sum(SIZES.values())}
        (out / "output.jsonl").unlink()

    asyncio.run(batch_run(**common, data=str(place.data), image_roots=[str(place.shared)]))
    assert place.sizes() == SIZES
    (out / "output.jsonl").unlink()

    words = [
        "run",
        str(place.flow),
        "--data",
        str(place.data),
        "--storage",
        str(place.storage),
        "--output-dir",
        str(out),
    ]
    assert main([*words, "--image-root", "/usr", "--image-root", str(place.shared)]) == 0
    assert place.sizes() == SIZES


def test_without_roots_the_error_names_the_option(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.rows("own.png", str(place.shared / "one.png"), "../shared/one.png")
    words = ["run", str(place.flow), "--data", str(place.data), "--storage", str(place.storage), "--json"]

    assert main(words) == 3

    errors = json.loads(capsys.readouterr().out)["result"]["error_summary"]["error_list"]
    assert [error["line_number"] for error in errors] == [1, 2]
    for error in errors:
        assert "leads out of" in error["error"]["message"]
        assert "--image-root FOLDER" in error["error"]["message"]


def test_a_root_allows_itself_only(place: Place) -> None:
    place.rows(str(place.folder / "secret.png"), "../secret.png", "../shared/../secret.png")

    result = BatchEngine(place.flow, run_storage_url=str(place.storage), image_roots=[place.shared]).run(
        {"data": place.data}
    )

    assert result.completed_lines == 0


def test_a_resume_keeps_the_roots_and_failed_lines_bring_their_images(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--output-dir", str(place.folder / "out")]
    words = [
        "run",
        str(place.flow),
        "--data",
        str(place.data),
        "--storage",
        str(place.storage),
        "--run-id",
        "r",
        "--json",
    ]
    assert main([*words, "--image-root", str(place.shared), *out]) == 3
    document = json.loads(capsys.readouterr().out)
    again = next(command for command in document["next_commands"] if "--data" in command)
    assert f"--image-root {place.shared}" in again
    [failed] = place.outputs("failed.jsonl")
    copied = failed["picture"]["data:image/png;path"]
    assert (place.folder / "out" / copied).read_bytes() == PNG + bytes(4)
    (place.flow / "healed").touch()

    assert main(["resume", "r", "--storage", str(place.storage)]) == 0

    assert place.sizes() == SIZES


def test_a_callable_gets_full_paths(place: Place, tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(
        "from pathlib import Path\ndef size(picture: dict) -> int:\n"
        "    (path,) = picture.values()\n    return len(Path(path).read_bytes())\n"
    )

    BatchEngine(f"{tmp_path / 'code.py'}:size", run_storage_url=str(place.storage), image_roots=[place.shared]).run(
        {"data": place.data}, output_dir=place.folder / "out"
    )

    assert [row["output"] for row in place.outputs()] == list(SIZES.values())


@pytest.fixture
def bucket() -> Iterator[str]:
    file_system = fsspec.filesystem("memory")
    file_system.pipe_file("/image-roots/deep/two.png", PNG + bytes(4))
    yield "memory://image-roots"
    file_system.rm("/image-roots", recursive=True)


def test_a_root_can_be_an_address(place: Place, bucket: str) -> None:
    from prefect_batchflow.images.places import read_within

    folders = (str(place.data.parent), bucket)

    assert read_within("own.png", folders) == PNG + bytes(2)
    assert read_within("deep/two.png", folders) == PNG + bytes(4)
    assert read_within(f"{bucket}/deep/two.png", folders) == PNG + bytes(4)


@pytest.mark.parametrize("root", ["nowhere", "", "look.py"])
def test_a_root_that_is_no_folder_is_refused_before_the_first_line(place: Place, root: str) -> None:
    with pytest.raises(InvalidOptionError, match=r"image_roots: .* is not a folder"):
        BatchEngine(place.flow, run_storage_url=str(place.storage), image_roots=[root or " "]).run({"data": place.data})


@pytest.mark.parametrize("root", ["$KEY_OF_TEST", "{folder}/$KEY_OF_TEST", "{folder}/${{KEY_OF_TEST}}/x"])
def test_the_value_of_a_variable_is_not_told_to_someone_who_only_names_it(
    place: Place, monkeypatch: pytest.MonkeyPatch, root: str
) -> None:
    monkeypatch.setenv("KEY_OF_TEST", "hunter2hunter2")
    with pytest.raises(InvalidOptionError, match=r"image_roots: .*KEY_OF_TEST.* is not a folder") as caught:
        located_image_roots([root.format(folder=place.folder)])
    assert "hunter2" not in str(caught.value)


def test_the_roots_of_a_deployment_limit_them(place: Place) -> None:
    request = BatchRequest(flow=str(place.flow), data=str(place.data), image_roots=["/etc"])

    with pytest.raises(InvalidOptionError, match="image_roots '/etc': not below"):
        check_roots(request, str(place.folder))
    check_roots(
        BatchRequest(flow=str(place.flow), data=str(place.data), image_roots=[str(place.shared)]), str(place.folder)
    )
