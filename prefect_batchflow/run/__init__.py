"""One batch run, one module per stage; `batch_run` calls the stages in order.

preparation (definition, inputs) → resuming (the run's records) → feeding (lines, execution, results) → ending (aggregation,
report).
"""
