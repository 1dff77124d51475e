"""The bugs of `mutations.py` still fit the code. Whether tests catch them takes minutes: `python tests/faults/mutations.py`."""

from __future__ import annotations

import pytest
from mutations import MUTATIONS, PACKAGE, ROOT, Mutation, mutated


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS)
def test_a_bug_fits_the_code(mutation: Mutation) -> None:
    source = mutated((ROOT / PACKAGE / mutation.file).read_text(), mutation)

    compile(source, mutation.file, "exec")
    assert all((ROOT / place).exists() for place in mutation.tests.split())
