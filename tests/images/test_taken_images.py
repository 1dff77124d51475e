"""Images of lines that are taken over: files again, and images again for the aggregation, in every way to resume."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from prefect_batchflow import AbstractBatchRunStorage, BatchEngine, FlowRunInfo, PromptflowRunStorage, RunInfo
from prefect_batchflow.cli.commands import main
from prefect_batchflow.images.image import Image, file_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

pytestmark = [pytest.mark.programs, pytest.mark.usefixtures("prefect_server")]

PNG = b"\x89PNG\r\n\x1a\n"
YAML = """
inputs:
  n: {type: int}
  picture: {type: image}
outputs:
  made: {type: image, reference: "${make.output.image}"}
  many: {type: object, reference: "${make.output}"}
  same: {type: image, reference: "${inputs.picture}"}
nodes:
- {name: make, type: python, source: {type: code, path: make.py}, inputs: {n: "${inputs.n}", p: "${inputs.picture}"}}
- {name: hide, type: python, source: {type: code, path: hide.py}, inputs: {n: "${inputs.n}"}}
- name: total
  type: python
  aggregation: true
  source: {type: code, path: total.py}
  inputs: {made: "${make.output.image}", whole: "${make.output}", pictures: "${inputs.picture}"HIDDEN}
"""
MAKE = """
from pathlib import Path
from promptflow.core import tool
from promptflow.contracts.multimedia import Image
@tool
def make(n: int, p: Image):
    with open("witness", "a") as file:
        file.write(f"{n} ")
    if n == 2 and not Path("healed").exists():
        raise ValueError("not yet")
    assert isinstance(p, Image)
    return {"image": Image(b"\\x89PNG\\r\\n\\x1a\\n" + bytes(n + 1), "image/png"), "list": [p, {"n": n}]}
"""
HIDE = """
from promptflow.core import tool
from promptflow.contracts.multimedia import Image
@tool
def hide(n: int):
    return Image(b"\\x89PNG\\r\\n\\x1a\\nhidden" + bytes(n), "image/png")
"""
TOTAL = """
from promptflow.core import tool, log_metric
from promptflow.contracts.multimedia import Image
@tool
def total(made: list, whole: list, pictures: list, hidden: list = ()):
    images = [*made, *pictures, *hidden, *(one["image"] for one in whole), *(one["list"][0] for one in whole)]
    log_metric("bytes", sum(map(len, images)))
    log_metric("kinds", ",".join(sorted({type(one).__name__ for one in images})))
    return 1
"""
ROWS: list[dict[str, Any]] = [{"n": n, "picture": {"data:image/png;path": "a.png"}} for n in range(4)]


class Kept(AbstractBatchRunStorage):
    """A user's own storage; it can keep what it gets as JSON, with promptflow's fields only."""

    def __init__(self, *, as_json: bool = False, fields: Sequence[str] | None = None) -> None:
        self.as_json = as_json
        self.without = fields or ()
        self.lines: dict[int, Any] = {}
        self.nodes: dict[int, list[Any]] = {}

    def persist_node_run(self, run_info: RunInfo) -> None:
        if run_info.index is not None:
            self.nodes.setdefault(run_info.index, []).append(run_info.model_dump_json() if self.as_json else run_info)

    def persist_flow_run(self, run_info: FlowRunInfo) -> None:
        assert run_info.index is not None
        self.lines[run_info.index] = run_info.model_dump_json(exclude=set(self.without)) if self.as_json else run_info

    def load_node_run_info_for_line(self, line_number: int) -> Sequence[RunInfo]:
        found = self.nodes.get(line_number, [])
        return [RunInfo.deserialize(json.loads(one)) for one in found] if self.as_json else found

    def load_flow_run_info(self, line_number: int) -> FlowRunInfo | None:
        found = self.lines.get(line_number)
        return FlowRunInfo.deserialize(json.loads(found)) if found and self.as_json else found


STORAGES: dict[str, Callable[[], Kept]] = {
    "objects": Kept,
    "json": lambda: Kept(as_json=True),
    "promptflow's fields": lambda: Kept(as_json=True, fields=["images"]),
}


class Place:
    """A flow with images, its data, and a storage of runs."""

    def __init__(self, folder: Path, hidden: str = "") -> None:
        self.folder = folder
        self.flow = folder / "flow"
        self.flow.mkdir()
        texts = {"flow.dag.yaml": YAML.replace("HIDDEN", hidden), "make.py": MAKE, "total.py": TOTAL, "hide.py": HIDE}
        for name, text in texts.items():
            (self.flow / name).write_text(text)
        (folder / "a.png").write_bytes(PNG + bytes(20))
        self.data = folder / "rows.jsonl"
        self.data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def run(self, flow: Any = None, **how: Any) -> tuple[list[dict[str, Any]], Any]:
        """Run, and give the outputs and the result; each image file that a row names must exist."""
        storage = how.pop("storage", None)
        out = self.folder / how.pop("out")
        engine = BatchEngine(
            flow or self.flow, storage=storage, run_storage_url=str(self.folder / "runs"), worker_count=1
        )
        result = engine.run({"data": self.data}, output_dir=out, **how)
        rows = [json.loads(row) for row in (out / "output.jsonl").read_text().splitlines()]
        for path in images_of(rows):
            assert (out / path).read_bytes().startswith(PNG), path
        return rows, result

    def executed(self) -> list[int]:
        return [int(n) for n in (self.flow / "witness").read_text().split()]

    def heal(self) -> None:
        (self.flow / "healed").touch()
        (self.flow / "witness").write_text("")


def images_of(value: Any) -> list[str]:
    """The paths of all images in a value; there must be none in another form."""
    if isinstance(value, list):
        return [path for part in value for path in images_of(part)]
    if isinstance(value, dict):
        if key := next((key for key in value if key.startswith("data:")), None):
            assert key == "data:image/png;path", key
            return [value[key]]
        return [path for part in value.values() for path in images_of(part)]
    return []


def expected(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a run without failures, from those of one that lost line 2."""
    made = Image(PNG + bytes(3), "image/png")
    image = {"data:image/png;path": f"images/{file_name(made)}"}
    row = {**rows[0], "line_number": 2, "made": image, "many": {"image": image, "list": [rows[0]["same"], {"n": 2}]}}
    return [*rows[:2], row, *rows[2:]]


METRICS = {"bytes": sum(2 * (9 + n) + 2 * 28 for n in range(4)), "kinds": "Image"}


@pytest.mark.parametrize("kind", STORAGES)
def test_a_users_own_storage(kind: str, tmp_path: Path) -> None:
    place, storage = Place(tmp_path), STORAGES[kind]()
    before, first = place.run(storage=storage, out="one")
    assert first.completed_lines == 3
    place.heal()

    rows, result = place.run(resume_from_run_storage=storage, out="two")

    assert place.executed() == [2]
    assert rows == expected(before)
    assert result.metrics == METRICS


def test_a_node_whose_image_is_nowhere_runs_its_line_again(tmp_path: Path) -> None:
    place, storage = Place(tmp_path, ', hidden: "${hide.output}"'), Kept()
    before, _ = place.run(storage=storage, out="one")
    place.heal()

    rows, result = place.run(resume_from_run_storage=storage, out="two")

    assert sorted(place.executed()) == [0, 1, 2, 3]
    assert rows == expected(before)
    assert result.metrics["kinds"] == "Image"


def test_a_resume_and_a_takeover_of_a_run(tmp_path: Path) -> None:
    place = Place(tmp_path)
    before, _ = place.run(run_id="one", out="one")
    (place.flow / "healed").touch()

    again, result = place.run(run_id="one", out="one")
    words = [
        "run",
        str(place.flow),
        "--data",
        str(place.data),
        "--resume-from",
        "one",
        "--storage",
        str(tmp_path / "runs"),
    ]
    (place.flow / "witness").write_text("")
    assert main([*words, "--output-dir", str(tmp_path / "two")]) == 0

    assert again == expected(before)
    assert result.metrics == METRICS
    taken = [json.loads(row) for row in (tmp_path / "two" / "output.jsonl").read_text().splitlines()]
    assert taken == again
    assert all((tmp_path / "two" / path).is_file() for path in images_of(taken))
    assert place.executed() == []


def write_promptflow_run(folder: Path) -> None:
    """A run folder as promptflow 1.18.5 writes it: images as files, named by their full paths."""
    name = 0

    def image(content: bytes, place: str) -> dict[str, str]:
        nonlocal name
        name += 1
        path = folder / place / f"{name:08d}-uuid.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return {"data:image/png;path": str(path)}

    picture = PNG + bytes(20)
    for n in (0, 1, 3):
        made = PNG + bytes(n + 1)

        def output(place: str, made: bytes = made, n: int = n) -> dict[str, Any]:
            return {"image": image(made, place), "list": [image(picture, place), {"n": n}]}

        lines, nodes = "flow_artifacts", "node_artifacts/make"
        line = {
            "run_id": f"old_{n}",
            "status": "Completed",
            "index": n,
            "inputs": {"n": n, "picture": image(picture, lines), "line_number": n},
            "output": {"made": image(made, lines), "many": output(lines), "same": image(picture, lines)},
        }
        node = {"node": "make", "run_id": f"old_make_{n}", "status": "Completed", "output": output(nodes)}
        (folder / lines / f"{n:09d}_{n:09d}.jsonl").write_text(json.dumps({"line_number": n, "run_info": line}) + "\n")
        (folder / nodes / f"{n:09d}.jsonl").write_text(json.dumps({"line_number": n, "run_info": node}) + "\n")


@pytest.mark.parametrize("door", ["engine", "command line"])
@pytest.mark.parametrize("moved", [False, True], ids=["in place", "moved"])
def test_a_run_folder_of_promptflow(moved: bool, door: str, tmp_path: Path) -> None:
    place, old = Place(tmp_path), tmp_path / "pf" / "old"
    write_promptflow_run(old)
    if moved:
        old = old.rename(tmp_path / "elsewhere")
    place.heal()

    if door == "engine":
        rows, result = place.run(resume_from_run_storage=PromptflowRunStorage(old), out="two")
        assert result.metrics == METRICS
    else:
        words = ["run", str(place.flow), "--data", str(place.data), "--storage", str(tmp_path / "runs")]
        assert main([*words, "--resume-from", str(old), "--output-dir", str(tmp_path / "two")]) == 0
        rows = [json.loads(row) for row in (tmp_path / "two" / "output.jsonl").read_text().splitlines()]

    assert place.executed() == [2]
    assert rows == expected([row for row in rows if row["line_number"] != 2])
    assert all((tmp_path / "two" / path).is_file() for path in images_of(rows))


def test_a_storage_that_names_images_in_the_former_output_folder(tmp_path: Path) -> None:
    place, storage = Place(tmp_path), Kept()
    before, _ = place.run(storage=storage, out="one")
    for row in before:
        number = row.pop("line_number")
        storage.lines[number] = storage.lines[number].model_copy(update={"output": dict(row), "images": None})
    storage.nodes.clear()
    (place.flow / "flow.dag.yaml").write_text(YAML.partition("- name: total")[0])
    place.heal()

    rows, _ = place.run(resume_from_run_storage=storage, resume_from_run_output_dir=tmp_path / "one", out="two")

    assert [row["line_number"] for row in rows] == [0, 1, 2, 3]
    assert place.executed() == [2]
    assert len(images_of(rows)) == 16


CLASS = """
from promptflow.contracts.multimedia import Image

class Score:
    def __call__(self, n: int) -> float:
        return n / 2

    def __aggregate__(self, lines: list) -> dict:
        return {"total": sum(lines)}


class Draw:
    def __call__(self, n: int) -> dict:
        return {"image": Image(b"\\x89PNG\\r\\n\\x1a\\n" + bytes(n), "image/png"), "said": {"data:image/png;base64": "AAAA"}}

    def __aggregate__(self, lines: list) -> dict:
        return {"kinds": ",".join(sorted({next(iter(line.image)) for line in lines}))}
"""


@pytest.mark.parametrize("name", ["Score", "Draw"])
def test_a_class_with_an_aggregation(name: str, tmp_path: Path) -> None:
    place, storage = Place(tmp_path), Kept(as_json=True)
    (tmp_path / "code.py").write_text(CLASS)
    flow = f"{tmp_path / 'code.py'}:{name}"
    out = tmp_path / "one"
    engine = BatchEngine(flow, storage=storage, run_storage_url=str(tmp_path / "runs"))
    first = engine.run({"data": place.data}, output_dir=out)

    again = BatchEngine(flow, run_storage_url=str(tmp_path / "runs")).run(
        {"data": place.data}, output_dir=tmp_path / "two", resume_from_run_storage=storage
    )

    assert again.metrics == first.metrics
    assert (tmp_path / "two" / "output.jsonl").read_bytes() == (out / "output.jsonl").read_bytes()
