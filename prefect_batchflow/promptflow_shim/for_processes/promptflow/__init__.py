"""Becomes the mirror of promptflow in a process that a worker's code starts, such as joblib's.

Such a process has the worker's `sys.path`, with this folder at its end, but not the worker's finders.
"""

import importlib
import sys

from prefect_batchflow import promptflow_shim

promptflow_shim.install()
sys.modules[__name__] = importlib.import_module(__name__)
