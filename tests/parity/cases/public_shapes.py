"""Flows of the shapes that promptflow's documentation teaches, written anew. Prompts are compared as sent."""

from __future__ import annotations

import json
from typing import Any

from declared import FLEX, MODEL_URL, cases_of, dag, flex, node

from cases.models import PROMPTY, WITH_MODEL, prompty

case = cases_of("public_shapes")

WHOLE = "gpt"
LLM: dict[str, Any] = {"connection": "open_ai", "api": "chat", "provider": "OpenAI"}
HISTORY = [{"inputs": {"question": "Who wrote it?"}, "outputs": {"answer": "A woman."}}]
CLIENT = f"""
from openai import OpenAI
client = OpenAI(base_url="{MODEL_URL}", api_key="key-of-a-test", max_retries=0)
def ask(*messages, **more):
    answer = client.chat.completions.create(model="{WHOLE}", messages=list(messages), **more)
    return answer.choices[0].message.content
"""
COUNTED: dict[str, Any] = {"env": {"PF_DISABLE_TRACING": "false"}}
MODEL = {"type": "openai", "model": WHOLE, "base_url": MODEL_URL, "api_key": "key-of-a-test"}
FRONT = f"name: ask\nmodel:\n  api: chat\n  configuration: {json.dumps(MODEL)}\n  parameters: {{max_tokens: 256}}\n"
"""promptflow fails on a prompty that has no parameters."""


def llm(file: str, **inputs: Any) -> dict[str, Any]:
    """An llm node."""
    return {"type": "llm", "source": {"type": "code", "path": file}, "inputs": {"model": WHOLE, **inputs}, **LLM}


def prompt(file: str, **inputs: Any) -> dict[str, Any]:
    """A prompt node."""
    return {"type": "prompt", "source": {"type": "code", "path": file}, "inputs": inputs}


# --- DAG flows: standard ---------------------------------------------------------------------------------------------

case(
    "shape_classification_of_pages",
    dag(
        {"url": "string", "category_hint": {"type": "string", "default": "App"}},
        {"category": "${parse.output.category}", "evidence": "${parse.output.evidence}"},
        fetch=node("def fetch(url: str) -> str:\n    return f'Content of {url}. ' * 3", {"url": "${inputs.url}"}),
        summarise=llm("summarise.jinja2", text="${fetch.output}", temperature=0.2, max_tokens=128),
        examples=node(
            "def examples():\n    return [{'url': 'https://a.example', 'category': 'App', 'evidence': 'Both'}]"
        ),
        classify=llm(
            "classify.jinja2",
            url="${inputs.url}",
            text_content="${summarise.output}",
            examples="${examples.output}",
            temperature=0.1,
        ),
        parse=node(
            """
            import json
            def parse(input_str: str) -> dict:
                try:
                    return json.loads(input_str)
                except json.JSONDecodeError:
                    return {"category": input_str, "evidence": "None"}
            """,
            {"input_str": "${classify.output}"},
        ),
    )
    | {
        "summarise.jinja2": "system:\nSummarise in one paragraph.\n\nuser:\nText: {{text}}\nSummary:\n",
        "classify.jinja2": "system:\nClassify a page.\nCategories: App, Channel, None.\n{% for ex in examples %}\n"
        'URL: {{ex.url}}\nOUTPUT:\n{"category": "{{ex.category}}", "evidence": "{{ex.evidence}}"}\n{% endfor %}\n'
        "user:\nURL: {{url}}\nText: {{text_content}}.\nOUTPUT:\n",
    },
    [{"url": "https://x.example/one"}, {"url": "https://y.example/two"}],
    **WITH_MODEL,
)
case(
    "shape_entities_of_a_text",
    dag(
        {"text": "string", "entity_type": {"type": "string", "default": "job title"}},
        {"entities": "${cleansing.output}"},
        ner=llm("ner.jinja2", text="${inputs.text}", entity_type="${inputs.entity_type}", max_tokens=64),
        cleansing=node(
            "from typing import List\n"
            "def cleansing(entities_str: str) -> List[str]:\n"
            "    return [part.strip(' \\t.\"') for part in entities_str.split(',') if part.strip()]",
            {"entities_str": "${ner.output}"},
        ),
    )
    | {
        "ner.jinja2": "system:\nFind entities of type {{entity_type}}, comma separated.\n\nuser:\n{{text}}\nEntities:\n"
    },
    [{"text": "The CEO met, the CFO", "entity_type": "job title"}, {"text": "Ann, Bob", "entity_type": "name"}],
    {"entity_type": "${data.entity_type}"},
    **WITH_MODEL,
)
case(
    "shape_rendered_prompt_then_python",
    dag(
        {"text": {"type": "string", "default": "Hello World!"}},
        {"output": "${llm.output}"},
        hello_prompt=prompt("hello.jinja2", text="${inputs.text}"),
        llm=node(
            CLIENT.replace("def ask", "def _ask")
            + "def my_llm_tool(prompt: str, deployment_name: str, max_tokens: int = 120) -> str:\n"
            "    return _ask({'role': 'user', 'content': prompt}, max_tokens=max_tokens)",
            {"prompt": "${hello_prompt.output}", "deployment_name": "d", "max_tokens": "120"},
        ),
    )
    | {"hello.jinja2": "Write a simple {{text}} program that displays the greeting message.\n"},
    [{"text": "Python"}, {"text": "Rust"}],
    {"text": "${data.text}"},
    **COUNTED,
)
case(
    "shape_rendered_prompt_then_llm",
    dag(
        {"text": "string"},
        {"output": "${ask.output}"},
        hello_prompt=prompt("hello.jinja2", text="${inputs.text}"),
        ask=llm("hello.jinja2", prompt="${hello_prompt.output}", max_tokens=256, temperature=0.7),
    )
    | {"hello.jinja2": "system:\nYou write code.\nuser:\nWrite a simple {{text}} program.\n"},
    [{"text": "Python"}],
    **WITH_MODEL,
)
case(
    "shape_code_from_maths",
    dag(
        {"math_question": "string", "math_example": {"type": "list", "default": []}},
        {"code": "${refined.output}", "answer": "${executed.output}"},
        examples=node(
            "def examples(picked: list) -> list:\n    return picked or [{'question': '1+1', 'code': 'print(1+1)'}]",
            {"picked": "${inputs.math_example}"},
        ),
        gen=llm("gen.jinja2", question="${inputs.math_question}", examples="${examples.output}", stop=["##", "END"]),
        refined=node(
            "import re\ndef refined(original: str) -> str:\n    return re.sub(r'\\s+', ' ', original)",
            {"original": "${gen.output}"},
        ),
        executed=node("def executed(code: str) -> int:\n    return len(code)", {"code": "${refined.output}"}),
    )
    | {
        "gen.jinja2": "system:\nSolve with Python.\n{% for ex in examples %}\nQ: {{ex.question}}\nA: {{ex.code}}\n{% endfor %}"
        "\n\nuser:\nQUESTION: {{question}}\nCODE:\n"
    },
    [{"math_question": "2 * 3?"}, {"math_question": "What is 7 % 4?"}],
    **WITH_MODEL,
)
case(
    "shape_if_else",
    dag(
        {"question": {"type": "string", "default": "What is it?"}},
        {"answer": "${answer.output}"},
        safety=node("def safety(text: str) -> bool:\n    return 'bad' not in text", {"text": "${inputs.question}"}),
        right=llm("right.jinja2", question="${inputs.question}")
        | {"activate": {"when": "${safety.output}", "is": True}},
        wrong=node(
            "def wrong(question: str) -> str:\n    return 'Not answered: ' + question",
            {"question": "${inputs.question}"},
            activate={"when": "${safety.output}", "is": False},
        ),
        answer=node(
            "def answer(result='', default=''):\n    return result if result else default",
            {"result": "${right.output}", "default": "${wrong.output}"},
        ),
    )
    | {"right.jinja2": "user:\n{{question}}\n"},
    [{"question": "good?"}, {"question": "bad?"}],
    {"question": "${data.question}"},
    **WITH_MODEL,
)
case(
    "shape_switch",
    dag(
        {"query": "string"},
        {"response": "${response.output}"},
        classify=node("def classify(query):\n    return query.split()[0]", {"query": "${inputs.query}"}),
        search=node(
            "def search(query):\n    return 'found ' + query",
            {"query": "${inputs.query}"},
            activate={"when": "${classify.output}", "is": "find"},
        ),
        order=node(
            "def order(query):\n    return 'ordered ' + query",
            {"query": "${inputs.query}"},
            activate={"when": "${classify.output}", "is": "buy"},
        ),
        response=node(
            "def response(a=None, b=None):\n    return a or b or 'Sorry'",
            {"a": "${search.output}", "b": "${order.output}"},
        ),
    ),
    [{"query": "find shoes"}, {"query": "buy a hat"}, {"query": "sing"}],
)
INTENT = "system:\nName the intents.\nHistory:\n{{chat_history}}\n\nuser:\n{{query}}\n"
case(
    "shape_variants_and_includes",
    dag(
        {"history": "string", "customer_info": "string"},
        {"output": "${extract.output}"},
        flow={
            "additional_includes": [],
            "node_variants": {
                "extract": {
                    "default_variant_id": "variant_0",
                    "variants": {
                        "variant_0": {
                            "node": llm(
                                "intent.jinja2", chat_history="${inputs.history}", query="${inputs.customer_info}"
                            )
                        },
                        "variant_1": {"node": llm("other.jinja2", query="${inputs.customer_info}")},
                    },
                }
            },
        },
        extract={"use_variants": True},
    )
    | {"intent.jinja2": INTENT, "other.jinja2": "user:\n{{query}}\n"},
    [{"history": "Customer: Hi\nAgent: Yes?", "customer_info": "My order is late"}],
    **WITH_MODEL,
)  # fmt: skip
case(
    "shape_functions_for_a_chat_model",
    dag(
        {"chat_history": {"type": "list", "default": []}, "question": {"type": "string", "is_chat_input": True}},
        {"answer": {"type": "string", "reference": "${run_function.output}", "is_chat_output": True}["reference"]},
        use=llm(
            "chat.jinja2",
            chat_history="${inputs.chat_history}",
            question="${inputs.question}",
            functions=[
                {
                    "name": "weather",
                    "description": "The weather at a place",
                    "parameters": {
                        "type": "object",
                        "properties": {"location": {"type": "string"}},
                        "required": ["location"],
                    },
                }
            ],
            function_call="auto",
        ),
        run_function=node(
            "def run_function(response_message) -> str:\n    return str(response_message)",
            {"response_message": "${use.output}"},
        ),
    )
    | {
        "chat.jinja2": "system:\nDo not make up values.\n{% for item in chat_history %}\nuser:\n{{item.inputs.question}}\n\n"
        "assistant:\n{{item.outputs.answer}}\n{% endfor %}\n\nuser:\n{{question}}\n"
    },
    [{"question": "Is it warm in Rome?", "chat_history": HISTORY}],
    {"chat_history": "${data.chat_history}"},
    **WITH_MODEL,
)
CHAT_TEMPLATE = (
    "system:\nYou are a helpful assistant.\n\n{% for item in chat_history %}\nuser:\n{{item.inputs.question}}\nassistant:\n"
    "{{item.outputs.answer}}\n{% endfor %}\n\nuser:\n{{question}}\n"
)
case(
    "shape_chat",
    dag(
        {"chat_history": {"type": "list", "is_chat_history": True, "default": []}, "question": "string"},
        {"answer": "${chat.output}"},
        chat=llm("chat.jinja2", chat_history="${inputs.chat_history}", question="${inputs.question}", max_tokens="256"),
    )
    | {"chat.jinja2": CHAT_TEMPLATE},
    [{"question": "And when?", "chat_history": HISTORY}, {"question": "Why?", "chat_history": []}],
    {"chat_history": "${data.chat_history}"},
    **WITH_MODEL,
)
case(
    "shape_chat_without_history",
    dag(
        {"chat_history": {"type": "list", "is_chat_history": True, "default": []}, "question": "string"},
        {"answer": "${chat.output}"},
        chat=llm("chat.jinja2", chat_history="${inputs.chat_history}", question="${inputs.question}"),
    )
    | {"chat.jinja2": CHAT_TEMPLATE},
    [{"question": "Why?"}, {"question": "Who?"}],
    **WITH_MODEL,
)
case(
    "shape_chat_over_search_results",
    dag(
        {"question": "string", "chat_history": {"type": "list", "default": []}},
        {"answer": "${augmented.output}"},
        rewrite=llm("rewrite.jinja2", question="${inputs.question}", chat_history="${inputs.chat_history}"),
        urls=node("def urls(entity: str, count: int = 2):\n    return [f'https://w.example/{n}' for n in range(count)]",
                  {"entity": "${rewrite.output}", "count": 2}),
        search=node("def search(url_list: list, count: int = 10):\n    return [(u, u[-1] * 3) for u in url_list][:count]",
                    {"url_list": "${urls.output}", "count": 10}),
        contexts=node(
            "def contexts(results: list):\n"
            "    return '\\n\\n'.join(f'Content: {text}\\nSource: {url}' for url, text in results)",
            {"results": "${search.output}"},
        ),
        augmented=llm("augmented.jinja2", question="${inputs.question}", chat_history="${inputs.chat_history}",
                      contexts="${contexts.output}"),
    )
    | {
        "rewrite.jinja2": "system:\nExtract the entity.\nuser:\n{{question}}\n",
        "augmented.jinja2": "system:\nAnswer from these parts:\n{{contexts}}\n" + CHAT_TEMPLATE.partition("\n\n")[2],
    },
    [{"question": "How tall is it?"}],
    **WITH_MODEL,
)  # fmt: skip

# --- DAG flows: evaluation -------------------------------------------------------------------------------------------

case(
    "shape_accuracy",
    dag(
        {"groundtruth": {"type": "string", "default": "APP"}, "prediction": {"type": "string", "default": "APP"}},
        {"grade": "${grade.output}"},
        grade=node(
            "def grade(groundtruth: str, prediction: str):\n"
            "    return 'Correct' if groundtruth.lower() == prediction.lower() else 'Incorrect'",
            {"groundtruth": "${inputs.groundtruth}", "prediction": "${inputs.prediction}"},
        ),
        accuracy=node(
            """
            from typing import List
            def accuracy(grades: List[str]):
                result = [grade == "Correct" for grade in grades]
                log_metric(key="accuracy", value=round(sum(result) / len(result), 2))
                return result
            """,
            {"grades": "${grade.output}"},
            aggregation=True,
        ),
    ),
    [{"groundtruth": "App", "prediction": "APP"}, {"groundtruth": "Channel", "prediction": "App"}],
    {"groundtruth": "${data.groundtruth}", "prediction": "${data.prediction}"},
)
case(
    "shape_scores_of_a_model",
    dag(
        {
            "question": "string",
            "answer": "string",
            "context": {"type": "string", "default": ""},
            "metrics": {"type": "string", "default": "coherence,relevance"},
        },
        {"coherence": "${concat.output.coherence}", "relevance": "${concat.output.relevance}"},
        chosen=node(
            "def chosen(metrics: str) -> dict:\n    given = [m.strip() for m in metrics.split(',')]\n"
            "    return {m: m in given for m in ('coherence', 'relevance')}",
            {"metrics": "${inputs.metrics}"},
        ),
        coherence=llm("coherence.jinja2", question="${inputs.question}", answer="${inputs.answer}", temperature=0.0)
        | {"activate": {"when": "${chosen.output.coherence}", "is": True}},
        relevance=llm("relevance.jinja2", question="${inputs.question}", context="${inputs.context}", answer="${inputs.answer}")
        | {"activate": {"when": "${chosen.output.relevance}", "is": True}},
        concat=node(
            """
            def concat(coherence: str = None, relevance: str = None) -> dict:
                found = {"coherence": coherence, "relevance": relevance}
                return {name: float("nan") if text is None else float(len(text)) for name, text in found.items()}
            """,
            {"coherence": "${coherence.output}", "relevance": "${relevance.output}"},
        ),
        aggregate=node(
            """
            from typing import List
            import math
            def aggregate(results: List[dict]):
                for name in ("coherence", "relevance"):
                    values = [result[name] for result in results if not math.isnan(result[name])]
                    if values:
                        log_metric(f"gpt_{name}", round(sum(values) / len(values), 2))
            """,
            {"results": "${concat.output}"},
            aggregation=True,
        ),
    )
    | {
        "coherence.jinja2": "system:\nScore 1 to 5.\nuser:\nquestion: {{question}}\nanswer: {{answer}}\nstars:\n",
        "relevance.jinja2": "system:\nScore 1 to 5.\nuser:\ncontext: {{context}}\nquestion: {{question}}\nanswer: {{answer}}\n",
    },
    [{"question": "q1", "answer": "a1", "context": "c"}, {"question": "q2", "answer": "a2", "context": "d"}],
    {"context": "${data.context}"},
    **WITH_MODEL,
)  # fmt: skip
case(
    "shape_distance_of_numbers",
    dag(
        {"groundtruth": "string", "prediction": "string"},
        {"score": "${score.output}"},
        score=node(
            """
            def string_to_number(raw: str):
                try:
                    return float(raw)
                except ValueError:
                    return None

            def score(groundtruth: str, prediction: str) -> float:
                number = string_to_number(prediction)
                return -1.0 if number is None else round(abs(float(groundtruth) - number), 10)
            """,
            {"groundtruth": "${inputs.groundtruth}", "prediction": "${inputs.prediction}"},
        ),
        aggregate=node(
            "from typing import List\ndef aggregate(scores: List[float]):\n"
            "    log_metric('error_rate', sum(s < 0 for s in scores) / len(scores))\n"
            "    log_metric('accuracy', sum(s == 0 for s in scores) / len(scores))",
            {"scores": "${score.output}"},
            aggregation=True,
        ),
    ),
    [{"groundtruth": "1.0", "prediction": "1"}, {"groundtruth": "2", "prediction": "x"}],
)
case(
    "shape_connection_of_ones_own",
    dag(
        {"text": "string"},
        {"out": "${use.output}"},
        use=node(
            "from promptflow.connections import CustomConnection\n"
            "def use(text: str, connection: CustomConnection) -> str:\n"
            "    return f'{text} {connection.k} {len(connection.secret)}'",
            {"text": "${inputs.text}", "connection": "custom"},
        ),
    ),
    [{"text": "a"}],
    **WITH_MODEL,
)

# --- flex flows -------------------------------------------------------------------------------------------------------

case(
    "shape_flex_function",
    flex(
        "from typing import TypedDict\nfrom promptflow.tracing import trace\n"
        + CLIENT
        + "class Result(TypedDict):\n    output: str\n\n@trace\n"
        "def main(question: str = 'What is it?') -> Result:\n"
        "    return Result(output=ask({'role': 'user', 'content': question}))\n"
    ),
    [{"question": "one"}],
    {"question": "${data.question}"},
    **FLEX,
    **COUNTED,
)
case(
    "shape_flex_function_with_a_dataclass",
    flex(
        "from dataclasses import dataclass\nfrom promptflow.tracing import trace\n"
        + CLIENT
        + "@dataclass\nclass Result:\n    output: str\n\n@trace\n"
        "def main(text: str = 'Hello World!') -> Result:\n"
        "    return Result(output=ask({'role': 'user', 'content': f'Write a simple {text} program.'}))\n"
    ),
    [{"text": "Python"}, {"text": "Rust"}],
    {"text": "${data.text}"},
    **FLEX,
    **COUNTED,
)
case(
    "shape_flex_class_of_a_prompty",
    flex(
        """
        from dataclasses import dataclass
        from pathlib import Path
        from promptflow.tracing import trace
        from promptflow.core import OpenAIModelConfiguration, Prompty

        HERE = Path(__file__).absolute().parent

        class ChatFlow:
            def __init__(self, model_config: OpenAIModelConfiguration, max_total_token=4096):
                self.model_config = model_config
                self.max_total_token = max_total_token

            @trace
            def __call__(self, question: str = "What?", chat_history: list = None) -> str:
                prompty = Prompty.load(source=HERE / "ask.prompty", model={"configuration": self.model_config})
                return prompty(question=question, chat_history=chat_history or [])
        """,
        "ChatFlow",
        init={"model_config": {"type": "OpenAIModelConfiguration"}},
    )
    | {
        "ask.prompty": f"---\n{FRONT}inputs:\n  question: {{type: string}}\n  chat_history: {{type: list}}\n---\n"
        "system:\nBe kind.\n{% for item in chat_history %}\n{{item.role}}:\n{{item.content}}\n{% endfor %}\n"
        "user:\n{{question}}\n"
    },
    [
        {"question": "Why?", "chat_history": []},
        {"question": "And?", "chat_history": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    ],
    {"question": "${data.question}", "chat_history": "${data.chat_history}"},
    init={"model_config": {"model": WHOLE, "base_url": "${env:PARITY_MODEL}", "api_key": "key-of-a-test"}},
    env={"PARITY_MODEL": MODEL_URL, **COUNTED["env"]},
    **FLEX,
)
case(
    "shape_flex_stream",
    flex(
        CLIENT + "def main(question: str):\n"
        "    answer = client.chat.completions.create(\n"
        f"        model='{WHOLE}', messages=[{{'role': 'user', 'content': question}}], stream=True\n    )\n"
        "    for part in answer:\n        if part.choices and part.choices[0].delta.content:\n"
        "            yield part.choices[0].delta.content\n"
    ),
    [{"question": "one two"}],
    **FLEX,
    **COUNTED,
)
case(
    "shape_flex_async_stream",
    flex(
        f"from openai import AsyncOpenAI\nclient = AsyncOpenAI(base_url='{MODEL_URL}', api_key='key-of-a-test')\n"
        "async def main(question: str):\n"
        "    answer = await client.chat.completions.create(\n"
        f"        model='{WHOLE}', messages=[{{'role': 'user', 'content': question}}], stream=True\n    )\n"
        "    async for part in answer:\n        if part.choices and part.choices[0].delta.content:\n"
        "            yield part.choices[0].delta.content\n"
    ),
    [{"question": "one two"}],
    **FLEX,
    **COUNTED,
)
case(
    "shape_flex_evaluator_with_aggregation",
    flex(
        """
        import json
        from pathlib import Path
        from promptflow.core import Prompty
        from promptflow.core._flow import Prompty as same

        assert same is Prompty

        class CodeEvaluator:
            def __init__(self, threshold: int = 3):
                self.threshold = threshold

            def __call__(self, code: str) -> dict:
                prompty = Prompty.load(source=Path(__file__).parent / "ask.prompty")
                output = prompty(code=code)
                return {"correctness": len(output), "passed": len(output) > self.threshold}

            def __aggregate__(self, line_results: list) -> dict:
                values = [r["correctness"] for r in line_results]
                return {"average_correctness": sum(values) / len(values), "total": len(values)}
        """,
        "CodeEvaluator",
        init={"threshold": {"type": "int", "default": 3}},
    )
    | {"ask.prompty": f"---\n{FRONT}inputs:\n  code: {{type: string}}\n---\nsystem:\nScore it.\nuser:\n{{{{code}}}}\n"},
    [{"code": "print(1)"}, {"code": "import os"}],
    init={"threshold": 5},
    **FLEX,
    **COUNTED,
)
case(
    "shape_flow_that_calls_a_flow",
    flex(
        """
        from pathlib import Path
        from promptflow.core import Flow

        def main(n: int) -> dict:
            inner = Flow.load(source=Path(__file__).parent / "inner")
            return {"inner": inner(text=f"number {n}")["out"]}
        """
    )
    | {
        f"inner/{name}": content
        for name, content in dag(
            {"text": "string"},
            {"out": "${up.output}"},
            up=node("def up(text: str) -> str:\n    return text.upper()", {"text": "${inputs.text}"}),
        ).items()
    },
    [{"n": 1}, {"n": 2}],
    **FLEX,
    **COUNTED,
)
case(
    "shape_flow_that_loads_a_flow",
    flex(
        """
        from pathlib import Path
        from promptflow.client import load_flow

        def main(text: str) -> str:
            return load_flow(source=Path(__file__).parent / "ask.prompty")(text=text)
        """
    )
    | {"ask.prompty": f"---\n{FRONT}inputs:\n  text: {{type: string}}\n---\nuser:\n{{{{text}}}}\n"},
    [{"text": "one"}],
    **FLEX,
    **COUNTED,
)

# --- prompties --------------------------------------------------------------------------------------------------------

case(
    "shape_prompty_chat",
    prompty(
        FRONT + "inputs:\n  first_name: {type: string}\n  last_name: {type: string}\n  question: {type: string}\n"
        "  chat_history: {type: list}\nsample:\n  first_name: John\n",
        "system:\nYou help {{first_name}} {{last_name}}.\n{% for item in chat_history %}\n{{item.role}}:\n{{item.content}}\n"
        "{% endfor %}\nuser:\n{{question}}\n",
    ),
    [{"first_name": "Ann", "last_name": "Lee", "question": "Hi?", "chat_history": [{"role": "user", "content": "x"}]}],
    **PROMPTY,
)
case(
    "shape_prompty_with_json_outputs",
    prompty(
        f"name: apology\nmodel:\n  api: chat\n  configuration: {json.dumps({**MODEL, 'model': 'gpt'})}\n"
        "  parameters:\n    temperature: 0.2\n    response_format: {type: json_object}\n"
        "inputs:\n  question: {type: string}\noutputs:\n  count: {type: int}\n",
        "system:\nAnswer in JSON.\nuser:\n{{question}}\n",
    ),
    [{"question": "one"}],
    **PROMPTY,
)
