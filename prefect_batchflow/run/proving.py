"""The lines of a stored run as its data has them now, for `batchflow verify`. No line runs, and Prefect is not asked."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from prefect_batchflow.exceptions import BatchflowException, InvalidOptionError, told
from prefect_batchflow.inputs.readers import open_source
from prefect_batchflow.lines import check, read_lines_of
from prefect_batchflow.run.starting import FlowRequest, starting
from prefect_batchflow.storage.care import DataNow
from prefect_batchflow.storage.source_run import open_previous_inputs, open_previous_run, refers_to_inputs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prefect_batchflow.blocks import RunStorageBlock
    from prefect_batchflow.storage.manifest import Manifest


async def data_now(files: RunStorageBlock, manifest: Manifest, data: Mapping[str, str]) -> DataNow:
    """Read a run's data, and start its flow, which knows types and defaults of inputs. `data` has sources at other places.

    An error is not raised: then nothing can be compared, and the answer says why.

    Raises:
        InvalidOptionError: `data` names a source that the run does not have.
    """
    if unknown := sorted(data.keys() - manifest.data.keys()):
        raise InvalidOptionError(
            f"The run {manifest.run_id!r} has no data source {unknown[0]!r}. It has {', '.join(manifest.data) or 'none'}."
        )
    urls = {**manifest.data, **data}
    if manifest.flow is None:
        return DataNow(problem=f"the flow {manifest.flow_name!r} is a Python object, which is not stored")
    if "-" in urls.values():
        return DataNow(problem="the data came from standard input, which is not stored. Give a copy of it with --data")
    try:
        return await _read(files, manifest, urls)
    except BatchflowException as exc:
        return DataNow(problem=told(exc))


async def _read(files: RunStorageBlock, manifest: Manifest, urls: Mapping[str, str]) -> DataNow:
    assert manifest.flow is not None, "asked before"
    options = replace(manifest.options, worker_count=1)
    request = FlowRequest(
        flow=manifest.flow,
        working_dir=manifest.working_dir,
        variant=manifest.variant,
        node_connections=manifest.node_connections,
        init_kwargs=manifest.init_kwargs or {},
        blocks=manifest.connections,
        options=options,
        run_id=manifest.run_id,
    )
    async with starting(request) as start:
        flow = start.flow.described(await start.start())
        sources = [
            open_source(url, name=name, line_number_column=options.line_number_column) for name, url in urls.items()
        ]
        if manifest.run:
            previous = await open_previous_run(files, manifest.run)
            sources.append(previous.outputs)
            if refers_to_inputs(manifest.inputs_mapping):
                sources.append(await asyncio.to_thread(open_previous_inputs, previous.manifest))

        def read() -> DataNow:
            inventory = check(
                sources,
                flow.inputs,
                manifest.inputs_mapping,
                options.max_lines_count or None,
                bad_rows=options.bad_rows,
                inputs_with_default=options.inputs_with_default,
                takes_any=flow.takes_any,
            )
            lines = read_lines_of(flow, sources, manifest.inputs_mapping, inventory, manifest.image_roots)
            hashes = {line.line_number: line.input_hash for line in lines}
            changed = [
                f"{summary.name!r} ({summary.url})"
                for summary in inventory.sources
                if manifest.fingerprints.get(f"data:{summary.name}", "") != summary.sha256[:32]
            ]
            return DataNow(hashes, changed)

        return await asyncio.to_thread(read)
