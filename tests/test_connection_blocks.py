"""Blocks of connections: what Prefect asks of a block, and promptflow's dictionary of each."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest
from prefect.testing.standard_test_suites.blocks import BlockStandardTestSuite
from pydantic import SecretStr

from prefect_batchflow.blocks import (
    AzureOpenAIConnectionBlock,
    ConnectionBlock,
    CustomConnectionBlock,
    OpenAIConnectionBlock,
)
from prefect_batchflow.connections.given import make_connection
from prefect_batchflow.prefect_runtime.own_database import block_name, may_have_blocks

if TYPE_CHECKING:
    from pathlib import Path

    from prefect.blocks.core import Block

CANARY = "s3cr3t-canary"
KEY = SecretStr(CANARY)


class TestStandard(BlockStandardTestSuite):
    @pytest.fixture(params=[AzureOpenAIConnectionBlock, CustomConnectionBlock, OpenAIConnectionBlock])
    def block(self, request: pytest.FixtureRequest) -> type[Block]:
        kind: type[Block] = request.param
        return kind

    def test_has_a_valid_image(self, block: type[Block]) -> None:
        assert block._logo_url is None, "with one, the UI would ask another host for it, as the suite's own test does"


@pytest.mark.parametrize(
    ("block", "kind", "configs"),
    [
        (OpenAIConnectionBlock(api_key=KEY), "OpenAIConnection", {"organization": None, "base_url": None}),
        (AzureOpenAIConnectionBlock(api_base="b", api_key=KEY), "AzureOpenAIConnection", {"api_base": "b"}),
        (CustomConnectionBlock(configs={"u": "v"}, secrets={"api_key": KEY}), "CustomConnection", {"u": "v"}),
        (CustomConnectionBlock(connection_type="SerpConnection", secrets={"api_key": KEY}), "SerpConnection", {}),
    ],
    ids=["openai", "azure", "custom", "another type"],
)
def test_a_block_becomes_the_connection(block: ConnectionBlock, kind: str, configs: dict[str, str | None]) -> None:
    connection = make_connection("my", block.spec(), {})
    assert (type(connection).__name__, connection.secrets) == (kind, {"api_key": CANARY})
    assert configs.items() <= connection.configs.items()
    assert CANARY not in repr(block)


@pytest.mark.parametrize(
    ("connection", "block"), [("my_openai", "my-openai"), ("My Open-AI.1", "my-open-ai-1"), ("__", "")]
)
def test_a_connections_name_tells_its_block(connection: str, block: str) -> None:
    assert block_name(connection) == block


@pytest.mark.parametrize(
    ("name", "text", "asks"),
    [
        ("pyproject.toml", "[tool.prefect.api]\nurl = 'http://127.0.0.1:9'\n", True),
        ("pyproject.toml", "[project]\ndependencies = ['prefect_batchflow']\n", False),
        (".env", "PREFECT_API_URL=http://127.0.0.1:9\n", True),
        (".env", "OPENAI_API_KEY=k\n", False),
        ("prefect.toml", "[api]\nurl = 'http://127.0.0.1:9'\n", True),
    ],
    ids=str,
)
def test_a_server_is_asked_if_the_folder_may_name_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, *, asks: bool
) -> None:
    (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    for variable in [v for v in os.environ if v.startswith("PREFECT_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    monkeypatch.delitem(sys.modules, "prefect")

    assert may_have_blocks(["my-ai"]) is asks
