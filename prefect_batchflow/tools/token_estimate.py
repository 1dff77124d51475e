"""How many tokens a prompt has, before it is sent.

With the package tiktoken (extra `tokens`) by the model's own encoding; tiktoken fetches it from the internet once. Without the
package or the encoding by the number of bytes, and a warning says so once.
"""

from __future__ import annotations

import base64
import functools
import io
import logging
import math
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

_PER_MESSAGE, _PER_NAME, _PER_ANSWER = 3, 1, 3
"""What a chat adds to its texts. Source: OpenAI's cookbook, "How to count tokens with tiktoken", as promptflow has it."""
_BYTES_PER_TOKEN: Final = 3
"""English has about four bytes in a token, Chinese three: without an encoding, the estimate is rather too high than too low."""
_UNKNOWN_MODEL_ENCODING: Final = "cl100k_base"
_TILE, _LONGEST_SIDE, _SHORT_SIDE = 512, 2048, 768
_TOKENS_PER_IMAGE, _TOKENS_PER_TILE = 85, 170
_TILES_OF_UNMEASURED_IMAGE: Final = 4
"""Those of an image of 1,024 by 1,024 pixels, if its size cannot be read."""


def estimated_tokens(prompt: str | list[dict[str, Any]], model: str) -> int:
    """Estimate the tokens of a completion's text, or of a chat's messages.

    Source: promptflow `core/_prompty_utils.py`, `num_tokens_from_messages`.
    """
    count = _counter(model)
    if isinstance(prompt, str):
        return count(prompt)
    total = _PER_ANSWER
    for message in prompt:
        total += _PER_MESSAGE
        for key, value in message.items():
            total += _tokens_of(value, count)
            total += _PER_NAME if key == "name" else 0
    return total


def _tokens_of(value: Any, count: Callable[[str], int]) -> int:
    if isinstance(value, str):
        return count(value)
    if not isinstance(value, list):
        return 0
    total = 0
    for part in value:
        if isinstance(part, dict) and part.get("type") == "image_url":
            total += _image_tokens(str(part["image_url"]["url"]))
        else:
            total += count(str(part["text"] if isinstance(part, dict) and "text" in part else part))
    return total


@functools.cache
def _counter(model: str) -> Callable[[str], int]:
    """How to count for a model; found once per process."""
    try:
        import tiktoken
    except ImportError:
        logger.warning(
            "estimate_token_count: tokens are estimated as one per %d bytes, because the package tiktoken is missing. Run "
            "`pip install 'prefect-batchflow[tokens]'` to count them.",
            _BYTES_PER_TOKEN,
        )
        return _by_bytes
    try:
        try:
            encoding = tiktoken.encoding_for_model(model)
        except KeyError:  # such as the name of a deployment
            encoding = tiktoken.get_encoding(_UNKNOWN_MODEL_ENCODING)
    except Exception as exc:  # noqa: BLE001 - tiktoken passes on whatever its download raises
        logger.warning(
            "estimate_token_count: tokens are estimated as one per %d bytes, because tiktoken cannot fetch the encoding for "
            "%r: (%s) %s. Without internet, set TIKTOKEN_CACHE_DIR to a folder that has it.",
            _BYTES_PER_TOKEN,
            model,
            type(exc).__name__,
            str(exc)[:200],
        )
        return _by_bytes
    # A text can have the marks of special tokens; they are plain text in a message.
    return lambda text: len(encoding.encode(text, disallowed_special=()))


def _by_bytes(text: str) -> int:
    return math.ceil(len(text.encode("utf-8", "surrogatepass")) / _BYTES_PER_TOKEN)


def _image_tokens(url: str) -> int:
    """The tokens of an image in high detail; measured if its bytes are in the URL and Pillow is installed."""
    size = _size_of(url)
    if size is None:
        return _TOKENS_PER_IMAGE + _TOKENS_PER_TILE * _TILES_OF_UNMEASURED_IMAGE
    width, height = map(float, size)
    if max(size) > _LONGEST_SIDE:
        width, height = (side * _LONGEST_SIDE / max(size) for side in size)
    if min(width, height) > _SHORT_SIDE:
        width, height = (side * _SHORT_SIDE / min(width, height) for side in (width, height))
    tiles = math.ceil(int(width) / _TILE) * math.ceil(int(height) / _TILE)
    return _TOKENS_PER_IMAGE + _TOKENS_PER_TILE * tiles


def _size_of(url: str) -> tuple[int, int] | None:
    head, _, data = url.partition(";base64,")
    if not data or not head.startswith("data:image/"):
        return None
    try:
        from PIL import Image

        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            width, height = image.size
            return width, height
    except (ImportError, OSError, ValueError):
        return None
