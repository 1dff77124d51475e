"""No secret of a connection is kept: not in records, errors, printed output, however it is written."""

from __future__ import annotations

import base64
import html
import json
import re
import reprlib
import textwrap
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from prefect_batchflow.connections.kinds import OpenAIConnection
from prefect_batchflow.connections.model_configurations import OpenAIModelConfiguration
from prefect_batchflow.execution.program.record import encode_record
from prefect_batchflow.execution.scrubbing import MASK, Scrubber, has_keys, secrets_of
from prefect_batchflow.inputs.formats import shorten
from prefect_batchflow.inputs.places import without_credentials

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = "sk-ä'\"\n-canary"


def scrubber(key: str = KEY) -> Scrubber:
    return Scrubber(secrets_of({"my": {"type": "OpenAIConnection", "value": {"api_key": key}}}, {}, {}, ()))


@pytest.mark.parametrize("written", [KEY, repr(KEY)[1:-1], json.dumps(KEY)[1:-1]], ids=["plain", "repr", "json"])
def test_a_secret_is_found_however_it_is_written(written: str) -> None:
    assert scrubber().text(f"key={written}!") == f"key={MASK}!"
    assert scrubber().finds_in(json.dumps({"a": written}).encode())


KEYS = [
    "sk-abc123DEF456ghi789jkl012mno", "q7Zk+/=canary+0/1==", "p@ss w0rd&<b>'\"\\/\n\t!", "ключ-канарейка-🐦-ab12",
    "+/=&%$#@!;:,.?*",
    "a-b-c-d-e-f-g-h-i", "12345678", "{json: \"like\"}", "C:\\new\\table", "%2B%2F%3D-encoded%already",
]  # fmt: skip


def _text(of: Callable[[bytes], str]) -> Callable[[str], str]:
    return lambda key: of(key.encode())


ENCODINGS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "percent": lambda key: quote(key, safe=""),
    "percent but slashes": quote,
    "percent in lower case": lambda key: _lower_percent(quote(key, safe="")),
    "percent twice": lambda key: quote(quote(key, safe=""), safe=""),
    "percent of each byte": _text(lambda data: "".join(f"%{byte:02X}" for byte in data)),
    "plus": quote_plus,
    "plus in JSON": lambda key: json.dumps(quote_plus(key)),
    "base64": _text(lambda data: base64.b64encode(data).decode()),
    "base64 without padding": _text(lambda data: base64.b64encode(data).decode().rstrip("=")),
    "base64 in a URL": lambda key: quote(base64.b64encode(key.encode()).decode(), safe=""),
    "url-safe base64": _text(lambda data: base64.urlsafe_b64encode(data).decode()),
    "basic": lambda key: base64.b64encode(f":{key}".encode()).decode(),
    "basic with a user": lambda key: base64.b64encode(f"me:{key}\n".encode()).decode(),
    "hexadecimal": _text(bytes.hex),
    "hexadecimal in capitals": _text(lambda data: data.hex().upper()),
    "JSON": lambda key: json.dumps(key)[1:-1],
    "JSON in UTF-8": lambda key: json.dumps(key, ensure_ascii=False)[1:-1],
    "JSON with escaped slashes": lambda key: json.dumps(key)[1:-1].replace("/", "\\/"),
    "JSON in JSON": lambda key: json.dumps(json.dumps({"k": key})),
    "JSON in JSON in JSON": lambda key: json.dumps(json.dumps(json.dumps(key))),
    "JSON with all escaped": lambda key: re.sub("....", r"\\u\g<0>", key.encode("utf-16-be").hex()),
    "repr": lambda key: repr(key)[1:-1],
    "ascii": lambda key: ascii(key)[1:-1],
    "repr of bytes": _text(lambda data: repr(data)[2:-1]),
    "repr of repr": lambda key: repr(repr(key)),
    "repr in JSON": lambda key: json.dumps(repr({"k": key})),
    "HTML": html.escape,
    "HTML without quotes": lambda key: html.escape(key, quote=False),
    "HTML twice": lambda key: html.escape(html.escape(key)),
    "HTML numbers": lambda key: "".join(f"&#{ord(char)};" for char in key),
    "HTML in hexadecimal": lambda key: "".join(f"&#x{ord(char):X};" for char in key),
    "HTML for ASCII": lambda key: html.escape(key).encode("ascii", "xmlcharrefreplace").decode(),
    "percent in HTML in JSON": lambda key: json.dumps(html.escape(quote(key, safe=""))),
}
"""The ways in which user code and the packages that it uses write a text."""


def _lower_percent(text: str) -> str:
    return re.sub("%..", lambda match: match[0].lower(), text)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("key", KEYS)
def test_a_secret_is_found_in_every_encoding(key: str, encoding: str) -> None:
    written = ENCODINGS[encoding](key)
    found = Scrubber([key, "another-secret-0123456789"])

    scrubbed = found.text(f"GET /x?api-key={written}&y=1 failed")

    assert MASK in scrubbed
    assert scrubbed.startswith("GET /x?api-key=")
    assert scrubbed.endswith("&y=1 failed")
    # Of base64, the characters beside it can hold bits of other bytes.
    assert len(scrubbed) <= len("GET /x?api-key=&y=1 failed") + len(MASK) + 24
    record = json.dumps({"output": {"a": written}}).encode()
    assert found.finds_in(record)
    assert found.value(json.loads(record)) != json.loads(record)


WRAPPED: dict[str, Callable[[str], str]] = {
    "two prints": lambda key: f"{key[:9]}\n{key[9:]}",
    "a narrow column": lambda key: textwrap.fill(f"the key {key}", 16),
    "a narrow column of Windows": lambda key: textwrap.fill(key, 20).replace("\n", "\r\n    "),
    "a traceback of a group": lambda key: f"{key[:20]}\n  | {key[20:]}",
    "JSON of lines": lambda key: json.dumps(textwrap.fill(key, 20)),
    "repr of JSON of lines": lambda key: repr(json.dumps([key[:7] + "\n" + key[7:]])),
    "MIME": lambda key: base64.encodebytes(b"x" * 50 + key.encode() + b"y" * 30).decode(),
    "MIME with an offset": lambda key: base64.encodebytes(b"x" * 49 + key.encode() + b"y" * 30).decode(),
    "PEM": lambda key: textwrap.fill(base64.b64encode(b"x" * 40 + key.encode()).decode(), 64),
    "url-safe": lambda key: textwrap.fill(base64.urlsafe_b64encode(b"x" * 35 + key.encode()).decode(), 60),
    "hexadecimal": lambda key: textwrap.fill(("x" * 50 + key).encode().hex(), 128),
}


@pytest.mark.parametrize("wrapping", WRAPPED)
@pytest.mark.parametrize("key", ["sk-abc123DEF456ghi789jkl012mno", "q7Zk+/=canary+0/1==q7Zk+/", "ABCDEFGHIJKLMNOP" * 4])
def test_a_secret_is_found_across_the_ends_of_lines(key: str, wrapping: str) -> None:
    written = WRAPPED[wrapping](key)
    scrubbed = Scrubber([key]).text(f"begin {written} end")

    assert MASK in scrubbed
    assert scrubbed.startswith("begin")
    assert scrubbed.endswith("end")
    assert Scrubber([key]).finds_in(json.dumps(written).encode())
    for part in (key[3:9], key[-6:], key.encode()[3:9].hex()):
        assert part not in scrubbed


LONG_KEY = "sk-proj-" + "aB3dE6gH9jK2mN5pQ8sT1vW4yZ7" * 4


@pytest.mark.parametrize(
    "text",
    [
        reprlib.repr(LONG_KEY), shorten(LONG_KEY), shorten({"key": [LONG_KEY]}),
        f"input_value='{LONG_KEY[:25]}...{LONG_KEY[-24:]}'",
        textwrap.shorten(f"{LONG_KEY[:40]}… is wrong", 60), f"{LONG_KEY[:50]}...", f"…{LONG_KEY[-20:]}",
        f"{LONG_KEY[:30]}...{LONG_KEY} {LONG_KEY[:30]}...", f"{LONG_KEY[:20]}......{LONG_KEY[-13:]}",
    ],
    ids=lambda text: text[:20] + text[-5:],
)  # fmt: skip
def test_the_ends_of_a_secret_that_was_cut_are_found(text: str) -> None:
    """A validation error shows a value's beginning and end, which are most of a key of 60 characters."""
    found = Scrubber([LONG_KEY])
    scrubbed = found.text(text)

    assert MASK in scrubbed
    assert not any(LONG_KEY[n : n + 9] in scrubbed for n in range(len(LONG_KEY)))
    assert found.finds_in(json.dumps({"a": text}).encode())


@pytest.mark.parametrize(
    "text", ["sk-proj-...", "sk-proj-aB3dE6gH9jK2 and more", "...", "aB3dE6gH9jK2mN5... or"], ids=str
)
def test_dots_and_common_beginnings_stay(text: str) -> None:
    assert Scrubber([LONG_KEY]).text(text) == text
    assert not Scrubber([LONG_KEY]).finds_in(json.dumps(text).encode())


def test_secrets_that_begin_and_end_alike_are_taken_out_once() -> None:
    alike = [LONG_KEY, LONG_KEY[:40] + "x" * 20 + LONG_KEY[-20:], LONG_KEY[:30] + "y" * 20]
    text = f"{LONG_KEY[:35]}...{LONG_KEY[-15:]} and the rest of the text"

    assert Scrubber(alike).text(text) == f"{MASK}...{MASK} and the rest of the text"


def test_short_secrets_are_not_put_together_from_two_lines() -> None:
    assert Scrubber(["12345678"]).text("1234\n5678") == "1234\n5678"


URL_SECRETS = {
    "postgres://bob:canary12345@db.example/x": {"canary12345"},
    "redis://:canary12345@h": {"canary12345"},
    "https://u:canary%2B12345@h/x": {"canary%2B12345", "canary+12345"},
    "https://ghp_canary1234567890@github.com/x": {"ghp_canary1234567890"},
    "s3://bucket/x?X-Amz-Signature=canary12345&x=1": {"canary12345"},
    "https://h/x?X-Goog-Signature=canary12345": {"canary12345"},
    "https://a.blob.core.windows.net/c/x.jsonl?sv=1&sig=canary%2F12345%3D": {"canary%2F12345%3D", "canary/12345="},
    "https://h/x?api-key=canary12345#f": {"canary12345"},
    "AccountName=a;AccountKey=canary12345==;EndpointSuffix=e": {"canary12345=="},
    "Server=s;Password=canary12345;Encrypt=yes": {"canary12345"},
    "see https://u:canary12345@h and https://h/x?token=canary67890": {"canary12345", "canary67890"},
    "https://user@h/x": set(),
    "abfss://a-long-container-name@account.example/x": set(),
    "https://h/x?page=12345678&keyword=12345678": set(),
    "s3://bucket/a:b@c": set(),
    "12:34:56 user:password@": set(),
}


@pytest.mark.parametrize("given_in", ["variable of the run", "variable of the process", "init", "connection"])
@pytest.mark.parametrize("text", URL_SECRETS)
def test_passwords_and_signatures_in_addresses_are_secrets(text: str, given_in: str) -> None:
    found = {
        "variable of the run": lambda: secrets_of({}, {}, {"ADDRESS": text}, ["ADDRESS"]),
        "variable of the process": lambda: secrets_of({}, {}, {"ADDRESS": text}, ()),
        "init": lambda: secrets_of({}, {"a": [{"b": text}]}, {}, ()),
        "connection": lambda: secrets_of({"c": {"type": "CustomConnection", "value": {"a": text}}}, {}, {}, ()),
    }[given_in]()

    assert found == URL_SECRETS[text]


@pytest.mark.parametrize("text", [text for text, secrets in URL_SECRETS.items() if secrets and "://" in text])
def test_prefect_gets_addresses_without_them(text: str) -> None:
    shown = without_credentials({"data": text, "more": [text]})

    assert "canary" not in str(shown)
    assert "…" in shown["data"] == shown["more"][0]


@pytest.mark.parametrize(
    ("name", "value", "is_secret"),
    [
        ("AWS_SECRET_ACCESS_KEY", "abc123def456ghi789", True),
        ("AWS_SESSION_TOKEN", "abc123def456ghi789", True),
        ("HF_TOKEN", "hf_abc123def456ghi7", True),
        ("AZURE_CLIENT_SECRET", "abc~123def456ghi789", True),
        ("PREFECT_API_AUTH_STRING", "admin:abc123def456", True),
        ("POSTGRES_PASSWORD", "postgres", False),
        ("DATABASE_URL", "postgres://postgres:password@localhost/x", False),
        ("SORT_KEY", "question_of_the_day", False),
        ("SSL_KEY", __file__, False),
        ("KEYBOARD", "abc123def456ghi789", False),
    ],
)
def test_secrets_of_the_process_are_known_by_name_and_look(name: str, value: str, is_secret: bool) -> None:
    """A common word in a variable of the process must not disappear from all outputs."""
    assert secrets_of({}, {}, {name: value}, ()) == ({value} if is_secret else set())


@pytest.mark.parametrize(
    ("name", "is_secret"),
    [
        ("token", True), ("password", True), ("client_secret", True), ("api_key", True), ("openai_api_key", True),
        ("access_token", True), ("aws_secret_key", True), ("apiKey", True),
        ("stop_token", False), ("sort_key", False), ("key", False), ("tokens", False), ("eos_token", False),
    ],
)  # fmt: skip
def test_arguments_of_a_constructor_are_secrets_by_their_names(name: str, is_secret: bool) -> None:
    given_in = {"deep": [{name: "a-value-1"}]}

    assert (secrets_of({}, given_in, {}, ()) == {"a-value-1"}) is is_secret
    assert has_keys(given_in) is is_secret


@given(
    st.text(min_size=8, max_size=40),
    st.lists(st.sampled_from(sorted(ENCODINGS)), min_size=1, max_size=1),
    st.text(max_size=9),
)
def test_any_secret_is_found_in_any_encoding(key: str, names: list[str], around: str) -> None:
    key = key.encode("utf-8", "ignore").decode()
    assume(len(key) >= 8)
    written = ENCODINGS[names[0]](key)
    assert MASK in Scrubber([key]).text(f"{around} {written} {around}")
    assert Scrubber([key]).finds_in(json.dumps([around, f" {written} "]).encode())


@given(st.text(alphabet=st.characters(codec="ascii"), max_size=200))
def test_texts_without_a_secret_stay(text: str) -> None:
    found = Scrubber(["sk-abc123DEF456ghi789jkl012mno", "q7Zk+/=canary+0/1=="])
    assert found.text(text) == text
    assert not found.finds_in(json.dumps(text).encode())


def test_a_large_text_is_searched_in_time() -> None:
    found = Scrubber(KEYS)
    text = "sk-abc123 %41%42 &amp; \\n q7Zk+/ " * 20_000
    assert MASK in found.text(text + KEYS[0])


@pytest.mark.parametrize(
    ("connections", "init_kwargs", "environ"),
    [
        ({"a": OpenAIConnection(api_key="canary-12345")}, {}, {}),
        ({"a": {"type": "CustomConnection", "value": {"k": "canary-12345"}, "secret_keys": ["k"]}}, {}, {}),
        ({"a": {"type": "OpenAIConnection", "value": {"api_key": "${env:X}"}}}, {}, {"X": "canary-12345"}),
        ({"a": {"type": "OpenAIConnection", "value": {"api_key": "k"}}}, {}, {"A_API_KEY": "canary-12345"}),
        ({"a": {"type": "unknown", "value": {"api_key": "canary-12345"}}}, {}, {}),
        ({}, {"model": {"model": "m", "api_key": "canary-12345"}}, {}),
        ({}, {"model": {"configuration": {"api_key": "${env:X}"}}}, {"X": "canary-12345"}),
        ({}, {"models": [OpenAIModelConfiguration(model="m", api_key="canary-12345")]}, {}),
        ({}, {}, {"OPENAI_API_KEY": "canary-12345"}),
        ({}, {}, {"SERP_TOKEN": "canary-12345"}),
    ],
    ids=[
        *("object", "custom", "variable", "override", "unknown type", "model configuration", "a prompty's model"),
        *("a configuration as object", "the environment's key", "a variable of the run"),
    ],
)
def test_every_place_a_secret_comes_from_is_known(
    connections: dict[str, Any], init_kwargs: dict[str, Any], environ: dict[str, str]
) -> None:
    assert Scrubber(secrets_of(connections, init_kwargs, environ, ["SERP_TOKEN"])).text("canary-12345") == MASK


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "hub_token", "DB_PASSWORD", "CLIENT_SECRET", "AWS_CREDENTIALS"])
def test_a_variable_of_the_run_that_is_named_as_a_secret_is_one(name: str) -> None:
    assert Scrubber(secrets_of({}, {}, {name: "canary-12345"}, [name])).text("a canary-12345") == f"a {MASK}"


def test_other_variables_stay() -> None:
    variables = {"KEYBOARD": "qwertz-layout", "MODEL": "gpt-4o-mini", "X_KEY": "short"}
    text = "qwertz-layout gpt-4o-mini short"
    assert Scrubber(secrets_of({}, {}, variables, variables)).text(text) == text


def test_what_is_no_secret_stays() -> None:
    spec = {"type": "CustomConnection", "value": {"url": "https://host", "key": "short"}, "secret_keys": ["key"]}
    assert Scrubber(secrets_of({"my": spec}, {}, {}, ())).text("https://host short") == "https://host short"
    variables = {"MODEL": "a-model-of-some-name", "OTHER_TOKEN": "not-of-the-run"}
    assert Scrubber(secrets_of({}, {}, variables, ["MODEL"])).text(str(variables)) == str(variables)
    assert Scrubber(secrets_of({"odd": 1}, {"n": 2}, {}, ())).value({"a": ["b"]}) == {"a": ["b"]}


def test_the_part_of_a_secret_at_a_cut_goes_too() -> None:
    key = "canary-0123456789"
    assert "canary" not in scrubber(key).beginning("text " * 10 + key[:12])
    assert "456789" not in scrubber(key).end(key[8:] + " text" * 10)


def test_a_record_keeps_its_shape() -> None:
    record: Any = {
        "status": "Failed",
        "inputs": {"q": KEY},
        "output": {"out": [KEY, {KEY: 1}]},
        "aggregation_inputs": {f"${{{KEY}.output}}": KEY},
        "error": {"message": f"bad {KEY}"},
        "metrics": {},
        "logs": KEY,
        "nodes": [{"node": "n", "inputs": {"c": KEY}, "output": float("nan"), "error": None, "metrics": {}}],
    }
    kept = scrubber().record(json.loads(encode_record(record)))
    assert kept["output"] == {"out": [MASK, {MASK: 1}]}
    assert kept["error"] == {"message": f"bad {MASK}"}
    assert kept["aggregation_inputs"] == {f"${{{KEY}.output}}": MASK}
    assert (kept["status"], kept["logs"], kept["nodes"][0]["inputs"]) == ("Failed", MASK, {"c": MASK})
