"""What happens to a run as a whole: resume, crash, limits, packages of tools, samples."""

from __future__ import annotations

from declared import FLEX, cases_of, dag, flex, node, sample

case = cases_of("runs")

N = {"n": "int"}
GIVEN = {"x": "${inputs.n}"}
OUT = {"out": "${f.output}"}
ROWS = [{"n": 1}, {"n": 2}, {"n": 3}]
TRIES = (
    "import os\ndef f(x):\n"
    "    if x == 2 and os.environ['PARITY_TRY'] == '1': raise ValueError('once')\n"
    "    return [x, os.environ['PARITY_TRY']]"
)

case("resume_runs_what_failed", dag(N, OUT, f=node(TRIES, GIVEN)), ROWS, resumes=True)
case(
    "resume_with_aggregation",
    dag(
        N,
        OUT,
        f=node(TRIES, GIVEN),
        total=node(
            "def total(xs): log_metric('tries', ' '.join(x[1] for x in xs))", {"xs": "${f.output}"}, aggregation=True
        ),
    ),
    ROWS,
    resumes=True,
)
case(
    "resume_of_a_flex_flow",
    flex(
        "import os\ndef main(n):\n"
        "    if n == 2 and os.environ['PARITY_TRY'] == '1': raise ValueError('once')\n"
        "    return {'n': n, 'try': os.environ['PARITY_TRY']}"
    ),
    ROWS,
    resumes=True,
    **FLEX,
)
case(
    "a_worker_that_dies",
    dag(N, OUT, f=node("import os\ndef f(x):\n    if x == 2: os._exit(3)\n    return x", GIVEN)),
    ROWS,
)
case(
    "a_line_beyond_its_limit",
    dag(N, OUT, f=node("import time\ndef f(x):\n    if x == 2: time.sleep(30)\n    return x", GIVEN)),
    ROWS,
    engine={"line_timeout_sec": 2},
)
case(
    "an_async_line_beyond_its_limit",
    dag(N, OUT, f=node("import asyncio\nasync def f(x):\n    if x == 2: await asyncio.sleep(30)\n    return x", GIVEN)),
    ROWS,
    engine={"line_timeout_sec": 2},
)
case(
    "a_flex_line_beyond_its_limit",
    flex("import time\ndef main(n):\n    if n == 2: time.sleep(30)\n    return n"),
    ROWS,
    engine={"line_timeout_sec": 2},
    **FLEX,
)
case(
    "several_workers_keep_the_order",
    dag(N, OUT, f=node("def f(x): return x", GIVEN)),
    [{"n": n} for n in range(20)],
    engine={"worker_count": 2},
)
case(
    "files_beside_the_flow",
    dag(N, OUT, f=node("from pathlib import Path\ndef f(x): return [x, Path('words.txt').read_text()]", GIVEN))
    | {"words.txt": "beside"},
    ROWS,
)
case(
    "environment_variables_of_the_yaml",
    dag(
        N,
        OUT,
        flow={"environment_variables": {"PARITY_GIVEN": "yaml"}},
        f=node("import os\ndef f(x): return os.environ.get('PARITY_GIVEN')", GIVEN),
    ),
    ROWS,
)
case(
    "keys_that_are_for_editors",
    dag(
        N,
        OUT,
        flow={"id": "x", "name": "y", "environment": {"python_requirements_txt": "requirements.txt"}, "$schema": "z"},
        f=node("def f(x): return x", GIVEN, comment="c"),
    ),
    ROWS,
)

PACKAGE: dict[str, str | bytes] = {
    "parity_tools/__init__.py": "",
    "parity_tools/shout.py": """
from promptflow.core import tool

@tool
def shout(text: str, mark: str = "!") -> str:
    return text.upper() + mark
""",
    "parity_tools/listing.py": """
def listing():
    inputs = {"text": {"type": ["string"]}, "mark": {"type": ["string"]}}
    return {"parity_tools.shout.shout": {
        "name": "shout", "type": "python", "module": "parity_tools.shout", "function": "shout", "inputs": inputs,
    }}
""",
    "parity_tools-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: parity-tools\nVersion: 1.0\n",
    "parity_tools-1.0.dist-info/entry_points.txt": "[package_tools]\nparity = parity_tools.listing:listing\n",
}
case(
    "a_tool_of_a_package",
    dag(
        {"text": "string"},
        {"out": "${f.output}"},
        f={
            "type": "python",
            "source": {"type": "package", "tool": "parity_tools.shout.shout"},
            "inputs": {"text": "${inputs.text}", "mark": "?"},
        },
    )
    | PACKAGE,
    [{"text": "one"}],
)
case(
    "a_tool_of_a_package_that_is_not_there",
    dag(
        {"text": "string"},
        {"out": "${f.output}"},
        f={
            "type": "python",
            "source": {"type": "package", "tool": "nowhere.at.all"},
            "inputs": {"text": "${inputs.text}"},
        },
    ),
    [{"text": "one"}],
)

case("sample_ticket_triage", sample("ticket_triage", 8, data="tickets.jsonl"), data={"data": "rows.jsonl"})
case(
    "sample_code_eval",
    sample("code_eval", 5, data="problems.jsonl", more={"flow.flex.yaml": "entry: evaluate:evaluate\n"}),
    data={"data": "rows.jsonl"},
    **FLEX,
)
