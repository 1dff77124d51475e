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
SEEN = """
    from pathlib import Path
    from promptflow.contracts.multimedia import Image

    def seen(value):
        if isinstance(value, list):
            return [seen(part) for part in value]
        if isinstance(value, dict):
            return {key: seen(part) for key, part in value.items()}
        if isinstance(value, str) and value.endswith(".png"):
            return [Path(value).name, Path(value).is_absolute(), Path(value).is_file()]
        return type(value).__name__ if isinstance(value, bytes) else value
"""
case(
    "flex_with_an_image_parameter",
    flex(SEEN + "\n    def main(image: Image): return {'seen': seen(image)}"),
    [{"image": BY_TEXT}, {"image": TEXT}],
    **FLEX,
)
case(
    "flex_with_images_by_path",
    flex(SEEN + "\n    def main(image, more: list): return {'seen': seen([image, more])}")
    | FILES
    | {
        "rows.jsonl": '{"image": {"data:image/png;path": "dot.png"}, "more": [{"deep": {"data:image/png;path": "dot.png"}}]}\n'
        '{"image": {"data:image/png;path": "no.png"}, "more": ["dot.png", {"data:image/png;path": "sub/../dot.png"}]}\n'
    },
    data={"data": "rows.jsonl"},
    **FLEX,
)
case(
    "flex_with_an_image_input_by_path",
    flex(SEEN + "\n    def main(image): return {'seen': seen(image)}", inputs={"image": {"type": "image"}})
    | FILES
    | {"rows.jsonl": LINES + '{"image": "dot.png"}\n'},
    data={"data": "rows.jsonl"},
    **FLEX,
)
case(
    "flex_with_an_image_in_the_vision_form",
    flex(SEEN + "\n    def main(image): return {'seen': seen(image)}")
    | FILES
    | {"rows.jsonl": '{"image": {"type": "image_file", "image_file": {"path": "dot.png"}}}\n'},
    data={"data": "rows.jsonl"},
    **FLEX,
)
case(
    "an_image_made_for_an_aggregation",
    flex(
        SEEN + "\n    class Main:\n"
        "        def __call__(self, n: int):\n"
        "            image = Image(bytes(n), 'image/png')\n"
        "            return {'image': image, 'many': [image]}\n"
        "        def __aggregate__(self, lines):\n"
        "            kinds = [type(part).__name__ for line in lines for part in (line.image, line.many[0])]\n"
        "            return {'kinds': ' '.join(kinds)}",
        "Main",
    ),
    [{"n": 3}],
    **FLEX,
)
case(
    "flex_that_gives_its_image_to_its_aggregation",
    flex(
        SEEN + "\n    class Main:\n"
        "        def __call__(self, image): return image\n"
        "        def __aggregate__(self, lines): return {'kinds': ' '.join(str(isinstance(line, dict)) for line in lines)}",
        "Main",
    ),
    [{"image": BY_TEXT}],
    **FLEX,
)
