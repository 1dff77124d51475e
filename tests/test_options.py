"""The options of a run: what each door takes, and refuses."""

from __future__ import annotations

import pytest

from prefect_batchflow.exceptions import InvalidOptionError
from prefect_batchflow.settings import RunOptions, check_max_failures


@pytest.mark.parametrize("text", ["", "1", "50", "5%", "0.5%", "2.5%", "100%"])
def test_max_failures_is_a_number_of_lines_or_a_share(text: str) -> None:
    check_max_failures(text)
    RunOptions(max_failures=text)


@pytest.mark.parametrize("text", ["0", "-1", "five", "120%", "100.5%", "5 %", "0%", "1.5", "01", " 1", "1\n", "%"])
def test_a_max_failures_that_cannot_be_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        check_max_failures(text)

    assert str(caught.value) == (
        f"max_failures is {text!r}. It must be a number of lines, such as 1 or 50, a share, such as 5%, or empty for no limit."
    )
