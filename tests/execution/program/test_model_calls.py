from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from prefect_batchflow.definition.load import load_flow
from prefect_batchflow.execution.program.loader import load_program

if TYPE_CHECKING:
    from pathlib import Path

    from model_server import ModelServer


def test_tokens_of_a_flows_own_calls_are_in_its_record(tmp_path: Path, model_server: ModelServer) -> None:
    (tmp_path / "ask.py").write_text(
        "def ask(question):\n"
        "    import openai\n"
        f"    with openai.OpenAI(api_key='k', base_url='{model_server.base_url}') as client:\n"
        "        asked = [{'role': 'user', 'content': question}]\n"
        "        return client.chat.completions.create(model='m', messages=asked).choices[0].message.content\n"
    )
    program = load_program(load_flow(f"{tmp_path / 'ask.py'}:ask"))

    run = program.run_line(0, {"question": "how are you"})

    assert run["output"] == {"output": "echo: how are you"}
    assert run["tokens"] == model_server.tokens


def test_a_flow_without_models_imports_none_of_their_packages(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text("def plain():\n    return 1\n")
    program = (
        "import sys\n"
        "from prefect_batchflow.definition.load import load_flow\n"
        "from prefect_batchflow.execution.program.loader import load_program\n"
        f"load_program(load_flow({str(tmp_path / 'plain.py:plain')!r})).run_line(0, {{}})\n"
        "print(*{'openai', 'jinja2', 'asyncio', 'prefect'} & set(sys.modules))\n"
    )

    run = subprocess.run([sys.executable, "-c", program], check=True, timeout=60, capture_output=True, text=True)

    assert run.stdout.split() == []
