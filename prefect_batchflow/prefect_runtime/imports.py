"""Imports what Prefect otherwise imports in the first call of a flow, where each run of a new process would wait for it."""

import fastapi.encoders  # noqa: F401
import prefect.flow_engine
import prefect.task_engine
import prefect.utilities.visualization  # noqa: F401
