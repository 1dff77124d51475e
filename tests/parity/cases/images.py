"""Images in inputs and outputs, in promptflow's two forms."""

from __future__ import annotations

import base64
import struct
import zlib

from declared import FLEX, cases_of, dag, flex, node

case = cases_of("images")


def png() -> bytes:
    """One red dot."""

    def part(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(b"\0\xff\0\0")) + part(b"IEND", b"")


DOT = png()
TEXT = base64.b64encode(DOT).decode()
FILES: dict[str, str | bytes] = {"dot.png": DOT}
SHOW = node(
    "from promptflow.contracts.multimedia import Image\n"
    "def show(x): return [type(x).__name__, len(bytes(x)) if isinstance(x, bytes) else x]",
    {"x": "${inputs.image}"},
)
IMAGE = {"image": "image"}
OUT = {"out": "${show.output}"}
BY_PATH = {"data:image/png;path": "dot.png"}
BY_TEXT = {"data:image/png;base64": TEXT}
LINES = '{"image": {"data:image/png;path": "dot.png"}}\n'

case(
    "image_by_path_beside_the_data",
    dag(IMAGE, OUT, show=SHOW) | FILES | {"rows.jsonl": LINES},
    data={"data": "rows.jsonl"},
)
case("image_by_base64", dag(IMAGE, OUT, show=SHOW), [{"image": BY_TEXT}])
case("image_as_plain_base64", dag(IMAGE, OUT, show=SHOW), [{"image": TEXT}])
case(
    "image_that_is_not_there",
    dag(IMAGE, OUT, show=SHOW),
    [{"image": {"data:image/png;path": "no.png"}}, {"image": BY_TEXT}],
)
case("image_that_is_none", dag(IMAGE, OUT, show=SHOW), [{"image": 5}])
case(
    "image_of_a_private_address",
    dag(IMAGE, OUT, show=SHOW),
    [{"image": {"data:image/png;url": "http://127.0.0.1:9/dot.png"}}],
)
case(
    "images_in_a_list",
    dag(
        {"image": "list"},
        OUT,
        show=node(
            "def show(x): return [[type(i).__name__, i if isinstance(i, str) else len(i)] for i in x]",
            {"x": "${inputs.image}"},
        ),
    ),
    [{"image": ["text", BY_TEXT]}],
)
case(
    "an_image_given_on",
    dag(IMAGE, {"out": "${give.output}"}, give=node("def give(x): return x", {"x": "${inputs.image}"})),
    [{"image": BY_TEXT}],
)
case(
    "an_image_made_by_a_node",
    dag(
        {"n": "int"},
        {"out": "${make.output}"},
        make=node(
            (
                "from pathlib import Path\nfrom promptflow.contracts.multimedia import Image\n"
                "def make(n): return {'n': n, 'image': Image(Path('dot.png').read_bytes(), 'image/png')}"
            ),
            {"n": "${inputs.n}"},
        ),
    )
    | FILES,
    [{"n": 1}],
)
case(
    "an_image_in_the_vision_form",
    dag(IMAGE, OUT, show=SHOW, flow={"message_format": "openai-vision"}),
    [{"image": {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{TEXT}"}}}],
)
case(
    "images_of_an_aggregation",
    dag(
        IMAGE,
        {},
        show=SHOW,
        total=node(
            "def total(xs): log_metric('kinds', ','.join(type(x).__name__ for x in xs))",
            {"xs": "${inputs.image}"},
            aggregation=True,
        ),
    ),
    [{"image": BY_TEXT}, {"image": BY_TEXT}],
)
case(
    "flex_with_an_image",
    flex("def main(image): return type(image).__name__", inputs={"image": {"type": "image"}}),
    [{"image": BY_TEXT}],
    **FLEX,
)
