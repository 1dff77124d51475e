"""Flows that `batchflow check` once judged wrongly: how their code is found, and what they need besides data."""

from __future__ import annotations

from declared import FLEX, cases_of, dag, flex, node

case = cases_of("checked")

ROWS = [{"text": "a"}, {"text": "b"}]
MAPPING = {"text": "${data.text}"}
OUTPUT = {"out": "${f.output}"}
TEXT = {"text": "string"}
GIVEN = {"text": "${inputs.text}"}

case(
    "a_package_that_adds_itself_to_the_path",
    {
        **dag(TEXT, OUTPUT, f=node("import adding\ndef f(text: str):\n    return adding.loud(text)\n", GIVEN)),
        "adding/__init__.py": "import os, sys\nsys.path.append(os.path.dirname(__file__))\nfrom adding_inner import loud\n",
        "adding/adding_inner.py": "from adding_deeper import mark\ndef loud(text):\n    return text.upper() + mark\n",
        "adding/adding_deeper.py": "mark = '!'\n",
    },
    ROWS,
    MAPPING,
)
case(
    "a_folder_that_the_tool_adds",
    {
        **dag(
            TEXT,
            OUTPUT,
            f=node(
                "import pathlib, sys\nsys.path.insert(0, str(pathlib.Path(__file__).parent / 'added'))\n"
                "import added_helper\ndef f(text: str):\n    return added_helper.loud(text)\n",
                GIVEN,
            ),
        ),
        "added/added_helper.py": "def loud(text):\n    return text.upper()\n",
    },
    ROWS,
    MAPPING,
)
case(
    "a_package_with_relative_imports",
    {
        **dag(TEXT, OUTPUT, f=node("from relative.a import loud\ndef f(text: str):\n    return loud(text)\n", GIVEN)),
        "relative/__init__.py": "",
        "relative/a.py": "from . import b\nfrom .b import mark\ndef loud(text):\n    return text.upper() + mark + b.mark\n",
        "relative/b.py": "mark = '?'\n",
    },
    ROWS,
    MAPPING,
)
case(
    "a_package_that_only_a_line_imports",
    dag(TEXT, OUTPUT, f=node("def f(text: str):\n    import not_there_at_all\n    return text\n", GIVEN)),
    ROWS,
    MAPPING,
)
case(
    "an_optional_package",
    dag(
        TEXT,
        OUTPUT,
        f=node(
            "try:\n    import not_there_at_all\nexcept ImportError:\n    not_there_at_all = None\n"
            "def f(text: str):\n    return text + str(not_there_at_all)\n",
            GIVEN,
        ),
    ),
    ROWS,
    MAPPING,
)
case(
    "a_class_whose_argument_no_yaml_names",
    flex(
        """
        class Main:
            def __init__(self, prefix, suffix="!"):
                self.prefix, self.suffix = prefix, suffix
            def __call__(self, text):
                return self.prefix + text + self.suffix
        """,
        "Main",
    ),
    ROWS,
    MAPPING,
    **FLEX,
)
case(
    "a_class_that_gets_that_argument",
    flex(
        """
        class Main:
            def __init__(self, prefix, suffix="!"):
                self.prefix, self.suffix = prefix, suffix
            def __call__(self, text):
                return self.prefix + text + self.suffix
        """,
        "Main",
    ),
    ROWS,
    MAPPING,
    init={"prefix": "<"},
    **FLEX,
)
case(
    "a_node_with_an_empty_connection",
    dag(
        TEXT,
        OUTPUT,
        f=node(
            "from promptflow.connections import CustomConnection\n"
            "def f(text: str, connection: CustomConnection):\n    return text\n",
            {**GIVEN, "connection": ""},
        ),
    ),
    ROWS,
    MAPPING,
)
case(
    "a_prompty_that_names_no_model",
    {
        "ask.prompty": "---\nmodel:\n  configuration: {type: openai, api_key: k, base_url: '@MODEL_URL@'}\n"
        "inputs: {text: {type: string}}\n---\nuser:\n{{text}}\n"
    },
    ROWS,
    MAPPING,
    entry="ask.prompty",
)
