"""A record as JSON: what promptflow can write is written, the rest is its repr or fails the line."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import pytest
from pydantic import BaseModel

from prefect_batchflow.exceptions import innermost_code
from prefect_batchflow.execution.program.record import encode_record


@dataclass
class Answer:
    text: Any
    score: float = 0.5


class Colour(Enum):
    RED = "red"


class Model(BaseModel):
    a: int


def record(**parts: Any) -> Any:
    return {
        "line_number": 3,
        "status": "Completed",
        "inputs": {},
        "output": {},
        "aggregation_inputs": {},
        "error": None,
        "metrics": {},
        "nodes": [],
        **parts,
    }


class TestEncoding:
    def test_a_record_is_ascii_json(self) -> None:
        given = record(output={"text": "é\ud800\u2028\0", "n": 10**20}, inputs={"b": True})

        encoded = encode_record(given)

        assert encoded.isascii()
        assert b"\n" not in encoded
        assert json.loads(encoded) == given

    def test_nan_and_infinity_stay(self) -> None:
        found = json.loads(encode_record(record(output={"a": math.nan, "b": -math.inf})))

        assert math.isnan(found["output"]["a"])
        assert found["output"]["b"] == -math.inf

    @pytest.mark.parametrize(
        ("value", "encoded"),
        [
            (datetime(2026, 1, 2, 3, 4), "2026-01-02T03:04:00Z"),
            (datetime(2026, 1, 2, 3, 4, tzinfo=UTC), "2026-01-02T03:04:00+00:00"),
            (Colour.RED, "red"),
            (Answer("x"), {"text": "x", "score": 0.5}),
            (Model(a=1), {"a": 1}),
            ((1, 2), [1, 2]),
            ({1: "a"}, {"1": "a"}),
        ],
    )
    def test_what_promptflow_can_write_is_written(self, value: Any, encoded: Any) -> None:
        assert json.loads(encode_record(record(output={"v": [value]})))["output"] == {"v": [encoded]}

    def test_an_output_that_is_no_json_is_its_repr_where_the_check_is_off(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PF_SKIP_SERIALIZATION_CHECK", "True")

        stored = json.loads(encode_record(record(output={"good": 1, "odd": {"deep": 1j}})))

        assert (stored["status"], stored["output"]) == ("Completed", {"good": 1, "odd": {"deep": "1j"}})

    def test_an_output_that_is_no_json_fails_the_line_in_place(self) -> None:
        given = record(output={"good": 1, "bad": {"deep": 1j}}, nodes=[{"node": "a", "output": 1, "inputs": {}}])

        stored = json.loads(encode_record(given))

        assert given["status"] == stored["status"] == "Failed"
        assert innermost_code(stored["error"]) == "FlowOutputUnserializable"
        assert stored["error"]["message"].startswith(
            "'bad' of the output is not JSON: (TypeError) a complex is not JSON."
        )
        assert given["error"] == stored["error"]
        assert (stored["output"], stored["aggregation_inputs"]) == (None, {})
        assert stored["nodes"][0]["node"] == "a"

    def test_what_aggregation_needs_must_be_json_too(self) -> None:
        stored = json.loads(encode_record(record(aggregation_inputs={"${a.output}": object})))

        assert stored["status"] == "Failed"
        assert stored["error"]["message"].startswith(
            "${a.output}, which the aggregation needs, is not JSON: (TypeError)"
        )

    def test_an_output_that_contains_itself_fails_the_line(self) -> None:
        circle: dict[str, Any] = {}
        circle["again"] = circle

        assert json.loads(encode_record(record(output={"o": circle})))["status"] == "Failed"

    def test_everything_else_becomes_its_repr(self) -> None:
        circle: list[Any] = []
        circle.append(circle)

        class Odd:
            def __repr__(self) -> str:
                raise RuntimeError

        nodes = [
            {"node": "a", "inputs": {"s": 1j, "c": circle, "k": {(1, 2): Odd}, "ok": [1]}, "output": Odd()},
            {"node": "b", "inputs": {}, "output": {(1, 2): b"bytes", "s": {2, 1}}},
        ]

        stored = json.loads(encode_record(record(nodes=nodes, metrics={"m": 1j}, output={"o": 1})))

        assert (stored["status"], stored["output"], stored["metrics"]) == ("Completed", {"o": 1}, {"m": "1j"})
        kept = stored["nodes"][0]["inputs"]
        assert kept == {"s": "1j", "c": "[[...]]", "k": repr({(1, 2): Odd}), "ok": [1]}
        assert stored["nodes"][0]["output"] == "<Odd, its repr raised RuntimeError>"
        assert stored["nodes"][1]["output"] == {"[1, 2]": "Ynl0ZXM=", "s": [1, 2]}

    def test_an_output_too_large_for_the_memory_fails_the_line(self) -> None:
        class Huge:
            @property
            def __dataclass_fields__(self) -> None:
                raise MemoryError

        given = record(output={"o": Huge()}, nodes=[{"node": "a", "inputs": {"x": 1}, "output": 2}])

        stored = json.loads(encode_record(given))

        assert innermost_code(stored["error"]) == "LineOutOfMemoryError"
        assert stored["nodes"] == [{"node": "a", "inputs": {}, "output": None}]
