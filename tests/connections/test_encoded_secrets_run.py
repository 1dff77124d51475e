"""A canary of a secret, in every encoding, is in nothing that a run leaves behind."""

from __future__ import annotations

import base64
import html
import json
import logging
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING
from urllib.parse import quote, quote_plus

import pytest
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL

from prefect_batchflow import BatchEngine, Status

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.programs, pytest.mark.usefixtures("no_blocks")]

CANARY = "q7Zk+/=bird5521 &0<1>'ä\\x41end"
FLOW = """
    import base64, html, json, os, sys
    from urllib.parse import quote, quote_plus

    def encodings(key):
        data = key.encode()
        return [
            key, quote(key, safe=""), quote(key), quote_plus(key), quote(quote(key, safe=""), safe=""),
            json.dumps(key), json.dumps(json.dumps({"k": key})), repr(key), repr(data), html.escape(key), data.hex(),
            base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode(), base64.b64encode(b"me:" + data).decode(),
            "".join(f"%{byte:02x}" for byte in data), "".join(f"&#{ord(char)};" for char in key),
        ]

    class Flow:
        def __call__(self, x: str) -> dict:
            key = os.environ["THEIR_TOKEN"]
            for written in encodings(key):
                print("printed", written)
                print("printed", written, file=sys.stderr)
            if x == "raise":
                raise ValueError(" ".join(encodings(key)))
            if x == "dict":
                raise RuntimeError({"url": encodings(key), key: 1})
            if x == "die":
                sys.stderr.flush()
                os._exit(3)
            return {"list": encodings(key), "text": "?api-key=".join(encodings(key)), key: encodings(key)}

        def __aggregate__(self, results):
            print(encodings(os.environ["THEIR_TOKEN"]))
            return {"note": " ".join(encodings(os.environ["THEIR_TOKEN"]))}
"""


def _forms() -> Iterator[str]:
    data = CANARY.encode()
    yield from (CANARY, quote(CANARY, safe=""), quote(CANARY), quote_plus(CANARY), html.escape(CANARY), data.hex())
    yield from (base64.b64encode(data).decode()[:-4], base64.urlsafe_b64encode(data).decode()[:-4])
    yield from (base64.b64encode(b"me:" + data).decode()[4:-4], "".join(f"%{byte:02x}" for byte in data))
    yield from ("".join(f"&#{ord(char)};" for char in CANARY), repr(CANARY)[1:-1], repr(data)[2:-1])
    yield "bird5521"  # a part that only few encodings change, and that no other test leaves in the database


def _leaks(text: str) -> set[str]:
    return {form for form in _forms() if form in text or json.dumps(form)[1:-1] in text}


def test_no_encoding_of_a_secret_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, told: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    (tmp_path / "flow").mkdir()
    (tmp_path / "flow" / "leak.py").write_text(dedent(FLOW))
    rows = "".join(f'{{"x": "{what}"}}\n' for what in ("fine", "raise", "dict", "die"))
    (tmp_path / "flow" / "data.jsonl").write_text(rows)
    engine = BatchEngine(
        "leak.py:Flow",
        tmp_path / "flow",
        run_storage_url=str(tmp_path / "runs"),
        environment_variables={"THEIR_TOKEN": CANARY},
        worker_count=1,
        granularity="line",
    )

    result = engine.run({"data": "data.jsonl"}, {"x": "${data.x}"}, tmp_path / "out", run_id="encodings")

    assert (result.status, result.completed_lines, result.failed_lines) == (Status.Completed, 1, 3)
    assert (tmp_path / "out" / "output.jsonl").read_text().count("**data_scrubbed**") > 30
    database = Path(str(PREFECT_API_DATABASE_CONNECTION_URL.value()).partition("///")[2])
    for folder in (tmp_path, database.parent):
        for file in folder.rglob("*"):
            if file.is_file():
                assert _leaks(file.read_bytes().decode("utf-8", "replace")) == set(), file
    printed = capfd.readouterr()
    for text in (result.model_dump_json(), str(result), caplog.text, str(told), printed.out, printed.err):
        assert _leaks(text) == set()
    assert "**data_scrubbed**" in str(told)
