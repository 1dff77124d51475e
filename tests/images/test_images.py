"""Images through whole runs: loaded for the flow, recorded, written as files, aggregated, resumed, built upon."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import pytest

from prefect_batchflow.flows import run_batch
from prefect_batchflow.images.image import Image, file_name
from prefect_batchflow.run.handle import LiveRun

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.programs, pytest.mark.usefixtures("prefect_server")]

PNG = b"\x89PNG\r\n\x1a\n" + bytes(8)
JPEG = b"\xff\xd8\xff" + bytes(9)
PNG_FILE = f"images/{file_name(Image(PNG))}"
MORE = {"more": "${data.more}"}
N = {"n": "${data.n}"}
B64 = base64.b64encode(PNG).decode()

YAML = """
inputs:
  picture: {type: image}
  more: {type: object, default: {"data:image/png;path": logo.png}}
outputs:
  same: {reference: "${look.output.image}"}
  seen: {reference: "${look.output.seen}"}
nodes:
- name: look
  type: python
  source: {type: code, path: look.py}
  inputs: {picture: "${inputs.picture}", more: "${inputs.more}", logo: logo.png}
- name: total
  type: python
  aggregation: true
  source: {type: code, path: total.py}
  inputs: {pictures: "${inputs.picture}", looked: "${look.output.image}", values: "${look.output}"}
"""
LOOK = """
from promptflow.core import tool
from promptflow.contracts.multimedia import Image

@tool
def look(picture: Image, more: object, logo: Image):
    def kinds(value):
        if isinstance(value, dict):
            return {key: kinds(part) for key, part in value.items()}
        return [kinds(part) for part in value] if isinstance(value, list) else f"{type(value).__name__} {len(value)}"
    assert isinstance(picture, Image) and isinstance(logo, Image)
    return {"image": picture, "seen": kinds(more)}
"""
TOTAL = """
from promptflow.core import tool, log_metric
from promptflow.contracts.multimedia import Image

@tool
def total(pictures: list, looked: list, values: list):
    assert all(isinstance(one, Image) for one in [*pictures, *looked])
    assert all(isinstance(value["image"], Image) for value in values)
    log_metric("bytes", sum(map(len, looked)))
    return looked
"""
CLASS = """
from base64 import b64decode
from pathlib import Path
from promptflow.contracts.multimedia import Image

def loaded(picture):
    assert type(picture) is dict
    ((key, said),) = picture.items()
    return Image(b64decode(said) if key.endswith("base64") else Path(said).read_bytes(), "image/png")

class Flow:
    def __call__(self, picture: Image, n: int = 0) -> dict:
        return {"copies": [loaded(picture)] * n, "n": n}

    def __aggregate__(self, lines: list) -> dict:
        return {"bytes": sum(len(loaded(copy)) for line in lines for copy in line.copies)}


async def alone(picture: Image) -> Image:
    return loaded(picture)


def given(picture: Image, more: list) -> dict:
    return {"given": [picture, more]}


def plain(text: str) -> dict:
    import sys
    return {"image_code": [name for name in sys.modules if name.startswith("prefect_batchflow.images")]}
"""

AGAIN = """
from pathlib import Path
from promptflow.contracts.multimedia import Image

def again(copies: list) -> dict:
    return {"again": Image(Path(copies[1]["data:image/png;path"]).read_bytes(), "image/png")}
"""


class Runs:
    """A storage, data with images beside it, and a flow with a logo of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.storage = folder / "runs"
        self.dag = folder / "flow"
        self.data = folder / "data"
        for place in (self.dag, self.data / "pictures"):
            place.mkdir(parents=True)
        (self.dag / "flow.dag.yaml").write_text(YAML)
        (self.dag / "look.py").write_text(LOOK)
        (self.dag / "total.py").write_text(TOTAL)
        (self.dag / "logo.png").write_bytes(PNG + b"logo")
        (self.dag / "flows.py").write_text(CLASS)
        (self.data / "pictures" / "a.png").write_bytes(PNG)
        (self.data / "pictures" / "b.jpg").write_bytes(JPEG)
        (folder / "secret.png").write_bytes(b"secret")

    def rows(self, *rows: dict[str, Any]) -> None:
        (self.data / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(self, run_id: str = "r", flow: str = "", **more: Any) -> list[dict[str, Any]]:
        """Run the DAG flow, or a callable; gives the outputs."""
        self.live = LiveRun(notes=[])
        named = f"{self.dag / 'flows.py'}:{flow}" if flow else str(self.dag)
        options = {"flow": named, "run_id": run_id, "storage": str(self.storage), "worker_count": 1}
        run_batch({**options, "data": str(self.data / "rows.jsonl"), **more}, self.live)
        return [json.loads(line) for line in (self.storage / run_id / "outputs.jsonl").read_text().splitlines()]

    @property
    def result(self) -> Any:
        return self.live.result

    def errors(self) -> list[str]:
        errors = self.result.error_summary.error_list
        return [error.error["message"] for error in errors]


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def path_of(name: str) -> dict[str, str]:
    return {"data:image/png;path": name}


def test_images_are_loaded_recorded_and_written_as_files(runs: Runs, tmp_path: Path) -> None:
    nested = {"list": [path_of("pictures/b.jpg"), {"deep": {"data:image/png;base64": B64}}]}
    runs.rows({"picture": path_of("pictures/a.png"), "more": nested}, {"picture": path_of("pictures/b.jpg")})

    first, second = runs.run(output_dir=str(tmp_path / "out"), inputs_mapping=MORE)

    assert first == {
        "line_number": 0,
        "same": path_of(PNG_FILE),
        "seen": {"list": ["Image 12", {"deep": "Image 16"}]},
    }
    assert second["seen"] == "Image 20", "a default's path is relative to the flow"
    assert (runs.storage / "r" / PNG_FILE).read_bytes() == PNG
    assert (tmp_path / "out" / PNG_FILE).read_bytes() == PNG
    assert runs.result.metrics == {"bytes": 28}
    stored = "".join(file.read_text() for file in (runs.storage / "r" / "records").iterdir())
    assert stored.count(B64) == 4, "in its input, output and what aggregation needs, by reference and whole; in no node"
    assert "Image(image/png, 16 bytes, " in stored
    assert str(runs.data) not in stored, "data may move"


def test_the_yamls_form_is_that_of_the_outputs(runs: Runs) -> None:
    yaml = YAML.replace('{"data:image/png;path": logo.png}', "{type: image_file, image_file: {path: logo.png}}")
    (runs.dag / "flow.dag.yaml").write_text(f"message_format: OpenAI-vision\n{yaml}")
    picture = {"type": "image_file", "image_file": {"path": "pictures/a.png"}}
    runs.rows({"picture": picture, "more": [{"type": "text", "text": "hi"}, path_of("x"), picture]})

    (row,) = runs.run(inputs_mapping=MORE)

    assert row["same"] == {"type": "image_file", "image_file": {"path": PNG_FILE}}
    assert row["seen"] == ["Text 2", {"data:image/png;path": "str 1"}, "Image 16"]


@pytest.mark.parametrize(
    ("picture", "text"),
    [
        (path_of("../secret.png"), "leads out of"),
        (path_of("/etc/passwd"), "leads out of"),
        (path_of("link.png"), "leads out of"),
        ("../secret.png", "leads out of"),
        (path_of("none.png"), "There is no image 'none.png' in"),
        ({"data:image/png;url": "http://127.0.0.1:1/x"}, "is on a private network"),
        ({"data:image/png;url": "http://localhost/x"}, "is on a private network"),
        ({"data:image/png;url": "file:///etc/passwd"}, "is not an http or https address"),
        ({"data:image/png;base64": "?"}, "Expected base64 text"),
        ("", "found ''"),
    ],
)
def test_an_image_that_may_not_be_read_fails_its_line(runs: Runs, picture: Any, text: str) -> None:
    (runs.data / "link.png").symlink_to(runs.folder / "secret.png")
    runs.rows({"picture": picture}, {"picture": "pictures/b.jpg"})

    rows = runs.run()

    assert [row["line_number"] for row in rows] == [1]
    (message,) = runs.errors()
    assert message.startswith("Failed to load image for input 'picture': (InvalidImageInput) ")
    assert text in message
    error = runs.result.error_summary.error_list[0].error
    assert (error["code"], error["innerError"]["code"]) == ("UserError", "LoadMultimediaDataError")


def test_a_class_flow_and_its_aggregation(runs: Runs) -> None:
    runs.rows({"picture": path_of("pictures/a.png"), "n": 2}, {"picture": {"data:image/png;base64": B64}, "n": 1})

    rows = runs.run(flow="Flow", inputs_mapping=N)

    assert rows[0]["copies"] == [path_of(PNG_FILE)] * 2
    assert runs.result.metrics == {"bytes": 48}
    assert [file.name for file in (runs.storage / "r" / "images").iterdir()] == [PNG_FILE.partition("/")[2]]


def test_an_async_flow(runs: Runs) -> None:
    runs.rows({"picture": path_of("pictures/a.png")}, {"picture": path_of("../secret.png")})

    assert runs.run(flow="alone") == [{"line_number": 0, "output": path_of(PNG_FILE)}]
    assert "leads out of" in runs.errors()[0]


def test_a_callable_gets_image_dictionaries_with_paths_that_can_be_opened(runs: Runs) -> None:
    """As in promptflow, whatever the parameter's annotation; the record has them as they were written."""
    address = {"data:image/png;url": "http://127.0.0.1:9/x"}
    runs.rows(
        {"picture": path_of("pictures/none.png"), "more": [{"deep": path_of("pictures/b.jpg")}, address]},
        {"picture": "pictures/a.png", "more": ["a.png"]},
        {"picture": path_of("x\0"), "more": []},
    )

    rows = runs.run(flow="given", granularity="chunk")

    there = str((runs.data / "pictures").resolve())
    assert rows[0]["given"] == [path_of(f"{there}/none.png"), [{"deep": path_of(f"{there}/b.jpg")}, address]]
    assert rows[1]["given"] == ["pictures/a.png", ["a.png"]]
    assert "The path 'x\\x00' is not valid" in runs.errors()[0]
    (records,) = (runs.storage / "r" / "records").iterdir()
    first = json.loads(records.read_text().splitlines()[1])
    assert first["inputs"]["picture"] == path_of("pictures/none.png")


def test_another_run_reads_the_images_of_this_one(runs: Runs) -> None:
    runs.rows({"picture": path_of("pictures/a.png"), "n": 2})
    runs.run(flow="Flow", inputs_mapping=N)
    (runs.dag / "again.py").write_text(AGAIN)

    runs.live = LiveRun(notes=[])
    request = {"flow": f"{runs.dag / 'again.py'}:again", "run": "r", "run_id": "s", "storage": str(runs.storage)}
    run_batch({**request, "inputs_mapping": {"copies": "${run.outputs.copies}"}}, runs.live)

    row = json.loads((runs.storage / "s" / "outputs.jsonl").read_text())
    assert row == {"line_number": 0, "again": path_of(PNG_FILE)}
    assert (runs.storage / "s" / PNG_FILE).read_bytes() == PNG


def test_another_run_reads_the_images_of_one_on_another_storage(runs: Runs) -> None:
    runs.rows({"picture": path_of("pictures/a.png"), "n": 2})
    storage = "memory://images-of-a-run"
    with pytest.raises(FileNotFoundError):
        runs.run(flow="Flow", storage=storage, inputs_mapping=N)

    (runs.dag / "again.py").write_text(AGAIN)
    runs.live = LiveRun(notes=[])
    request = {"flow": f"{runs.dag / 'again.py'}:again", "run": "r", "run_id": "s", "storage": storage}
    run_batch(
        {**request, "inputs_mapping": {"copies": "${run.outputs.copies}"}, "output_dir": str(runs.folder)}, runs.live
    )

    assert json.loads((runs.folder / "output.jsonl").read_text()) == {"line_number": 0, "again": path_of(PNG_FILE)}


def test_a_resume_goes_on_where_data_has_moved(runs: Runs) -> None:
    """Inputs are compared as they are written; images are found again in the data's folder, for aggregation too."""
    runs.rows({"picture": path_of("pictures/a.png")}, {"picture": path_of("pictures/later.png")})
    assert len(runs.run()) == 1
    (runs.data / "pictures" / "later.png").write_bytes(PNG + b"later")
    image = runs.storage / "r" / PNG_FILE
    written = image.stat().st_mtime_ns
    runs.data = runs.data.rename(runs.folder / "moved")

    rows = runs.run()

    assert [row["line_number"] for row in rows] == [0, 1]
    assert runs.result.metrics == {"bytes": 37}
    assert image.stat().st_mtime_ns == written, "what is there is not written again"


def test_literals_of_the_mapping_are_the_flows(runs: Runs) -> None:
    runs.rows({"n": 1})

    (row,) = runs.run(flow="Flow", inputs_mapping={"picture": path_of("logo.png"), "n": "${data.n}"})

    assert (runs.storage / "r" / row["copies"][0]["data:image/png;path"]).read_bytes() == PNG + b"logo"


def test_images_too_large_for_a_record_fail_their_line(runs: Runs) -> None:
    (runs.data / "big.png").write_bytes(PNG + bytes(9 * 1024 * 1024))
    runs.rows({"picture": path_of("big.png"), "n": 4}, {"picture": path_of("big.png"), "n": 1})

    rows = runs.run(flow="Flow", inputs_mapping=N)

    assert [row["line_number"] for row in rows] == [1]
    assert "have more than 33,554,432 bytes" in runs.errors()[0]


def test_a_flow_without_images_imports_nothing_for_them(runs: Runs) -> None:
    (runs.dag / "flows.py").write_text(
        CLASS.replace("from promptflow.contracts.multimedia import Image", "Image = bytes")
    )
    runs.rows({"text": '{"data:image/png;path": "x"}'})

    assert runs.run(flow="plain") == [{"line_number": 0, "image_code": []}]


def test_output_images_of_resumed_lines_come_along(runs: Runs) -> None:
    runs.rows({"picture": path_of("pictures/a.png")})
    runs.run()

    (row,) = runs.run("other", resume_from="r")

    assert (runs.storage / "other" / row["same"]["data:image/png;path"]).read_bytes() == PNG
    assert runs.result.metrics == {"bytes": 16}


FAILS = """
import os, pathlib
from promptflow.core import tool
from promptflow.contracts.multimedia import Image

@tool
def look(picture: Image, more: object, logo: Image):
    if not pathlib.Path(__file__).with_name("mended").exists():
        if len(picture) == 12:
            os._exit(1)
        raise ValueError("no")
    return {"image": picture, "seen": len(more["deep"][0]) if isinstance(more, dict) else len(more)}
"""


@pytest.mark.parametrize("place", ["storage", "output_dir"])
def test_failed_lines_are_data_of_a_new_run_with_their_images(runs: Runs, tmp_path: Path, place: str) -> None:
    (runs.dag / "look.py").write_text(FAILS)
    (runs.dag / "flow.dag.yaml").write_text(YAML.replace("inputs:\n", "inputs:\n  n: {type: int, default: 0}\n", 1))
    mapping = {**MORE, **N}
    runs.rows(
        {"picture": path_of("pictures/a.png"), "more": {"deep": [path_of("pictures/b.jpg")]}},
        {"picture": "pictures/b.jpg", "more": path_of("pictures/a.png")},
        {"picture": "logo.png", "more": {"data:image/png;base64": B64}},
        {"picture": path_of("../secret.png"), "more": path_of("none.png")},
        {"picture": "pictures/a.png", "more": {}, "n": "x"},
    )
    runs.run(inputs_mapping=mapping, output_dir=str(tmp_path / "out"))
    assert runs.result.failed_lines == 5
    folder = runs.storage / "r" if place == "storage" else tmp_path / "out"
    failed = [json.loads(line) for line in (folder / "failed.jsonl").read_text().splitlines()]
    assert failed[2]["picture"] == "logo.png", "the flow's own, wherever the data is"
    assert failed[3]["picture"] == path_of("../secret.png"), "what may not be read is not copied"
    assert failed[4]["picture"] == PNG_FILE, "its picture is in place when the other input has been mended"

    (runs.dag / "mended").touch()
    runs.data.rename(tmp_path / "gone")
    rows = runs.run("again", data=str(folder / "failed.jsonl"), inputs_mapping=mapping)

    assert [(row["line_number"], row["seen"]) for row in rows] == [(0, 12), (1, 16), (2, 16)]
    assert (runs.storage / "again" / rows[0]["same"]["data:image/png;path"]).read_bytes() == PNG
    assert (runs.storage / "again" / rows[1]["same"]["data:image/jpeg;path"]).read_bytes() == JPEG


def test_a_callables_texts_stay_as_they_are_in_the_failed_lines(runs: Runs) -> None:
    runs.rows({"picture": "pictures/a.png"}, {"picture": path_of("pictures/a.png"), "n": "x"})

    assert runs.run(flow="Flow", inputs_mapping={"n": "${data.n}"}, bad_rows="fail") == []

    failed = [json.loads(line) for line in (runs.storage / "r" / "failed.jsonl").read_text().splitlines()]
    assert [row["picture"] for row in failed] == ["pictures/a.png", path_of(PNG_FILE)]
