from promptflow.core import log_metric, tool


@tool
def accuracy(grades: list) -> float:
    """The share of expected answers, as a metric too."""
    share = sum(grades) / len(grades)
    log_metric("accuracy", share)
    log_metric("lines", len(grades))
    return share
