"""Tokens of a prompt before it is sent: by tiktoken's encodings, else by the number of bytes, with one warning."""

from __future__ import annotations

import base64
import logging
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from prefect_batchflow.tools import token_estimate
from prefect_batchflow.tools.token_estimate import estimated_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def first_time() -> Iterator[None]:
    token_estimate._counter.cache_clear()
    yield
    token_estimate._counter.cache_clear()


class Words:
    """An encoding with one token per word."""

    def __init__(self, name: str) -> None:
        self.name = name

    def encode(self, text: str, *, disallowed_special: Any = "all") -> list[str]:
        assert disallowed_special == (), "a mark of a special token would raise"
        return text.split()


@pytest.fixture
def tiktoken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands for tiktoken, which knows the model `gpt`. Gives the names that were asked for."""
    asked: list[str] = []

    def encoding_for_model(model: str) -> Words:
        asked.append(model)
        if model != "gpt":
            raise KeyError(model)
        return Words(model)

    def get_encoding(name: str) -> Words:
        asked.append(name)
        return Words(name)

    module = SimpleNamespace(encoding_for_model=encoding_for_model, get_encoding=get_encoding)
    monkeypatch.setitem(sys.modules, "tiktoken", module)
    return asked


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        ("three words here", 3),
        ([], 3),
        ([{"role": "system", "content": "two words"}], 3 + 3 + 1 + 2),
        ([{"role": "user", "content": "a b c"}, {"role": "assistant", "content": "d"}], 3 + (3 + 1 + 3) + (3 + 1 + 1)),
        ([{"role": "user", "name": "Ann", "content": "a"}], 3 + 3 + 1 + 1 + 1 + 1),
        ([{"role": "user", "content": [{"type": "text", "text": "a b"}, "c d"]}], 3 + 3 + 1 + 2 + 2),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x.example/a.png"}}]}], 7 + 765),
        ([{"role": "assistant", "content": None, "tool_calls": []}], 3 + 3 + 1),
        ([{"role": "user", "content": "<|endoftext|> a"}], 3 + 3 + 1 + 2),
    ],
)  # fmt: skip
def test_what_a_prompt_counts(prompt: Any, tokens: int, tiktoken: list[str]) -> None:
    assert estimated_tokens(prompt, "gpt") == tokens


def test_an_encoding_is_looked_up_once_and_an_unknown_model_gets_the_common_one(tiktoken: list[str]) -> None:
    for _ in range(3):
        assert estimated_tokens("a b", "my-deployment") == 2
    assert tiktoken == ["my-deployment", "cl100k_base"]


@pytest.mark.parametrize("cause", ["no package", "no internet"])
def test_without_an_encoding_the_bytes_count_and_one_warning_says_so(
    cause: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_name: str) -> None:
        raise ConnectionError("no route")

    module = None if cause == "no package" else SimpleNamespace(encoding_for_model=fails, get_encoding=fails)
    monkeypatch.setitem(sys.modules, "tiktoken", module)
    with caplog.at_level(logging.WARNING):
        assert [estimated_tokens(text, "gpt") for text in ("", "abc", "abcd", "漢字")] == [0, 1, 2, 2]
    (said,) = caplog.messages
    assert "one per 3 bytes" in said
    expected = "pip install 'prefect-batchflow[tokens]'" if module is None else "(ConnectionError) no route"
    assert expected in said


@pytest.mark.parametrize(
    ("size", "tiles"), [((10, 10), 1), ((512, 513), 2), ((1024, 1024), 4), ((4096, 1024), 4), ((2048, 4096), 6)]
)
def test_an_image_counts_by_its_tiles(
    size: tuple[int, int], tiles: int, tiktoken: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Opened:
        def __init__(self) -> None:
            self.size = size

        def __enter__(self) -> Opened:
            return self

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setitem(sys.modules, "PIL", SimpleNamespace(Image=SimpleNamespace(open=lambda _file: Opened())))
    url = "data:image/png;base64," + base64.b64encode(b"image").decode()
    prompt = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
    assert estimated_tokens(prompt, "gpt") == 7 + 85 + 170 * tiles
