from promptflow.core import tool


@tool
def grade(answer: str, expected: str) -> int:
    """1 for the expected answer, else 0."""
    return int(answer == expected)
