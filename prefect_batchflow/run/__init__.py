"""One batch run: its stages, a module each; `batch_run` calls them in their order.

preparation (definition, inputs) → opening (the run's records) → feeding (lines, execution, results) → ending (aggregation,
report).
"""
