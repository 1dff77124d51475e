"""A run from Python, as a program: `local_run.py <parameters as json>`. Prints the result as json."""

from __future__ import annotations

import asyncio
import json
import sys

from prefect_batchflow import BatchEngine, batch_run


async def _directly(**parameters: object) -> str:
    return str((await batch_run(**parameters)).model_dump_json())


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    if given.pop("direct", False):
        options = given.pop("options")
        print(asyncio.run(_directly(**given, **options)))  # noqa: T201 - its output
        sys.exit()
    engine = BatchEngine(given["flow"], **given.get("options", {}))
    result = engine.run({"data": given["data"]}, given["inputs_mapping"], run_id=given.get("run_id"))
    print(result.model_dump_json())  # noqa: T201 - its output
