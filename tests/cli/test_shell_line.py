"""Commands that are printed for copying are read by a shell as the words that they are made of."""

from __future__ import annotations

import os
import subprocess
import sys

from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_batchflow.cli.screen import shell_line

SHOW = "import os, sys; sys.stdout.buffer.write(b'\\0'.join(map(os.fsencode, sys.argv[1:])))"
ODD = [
    os.fsdecode(b"caf\xe9/it's \\x41 $HOME.jsonl"),
    os.fsdecode(b"\xff\n'\\"),
    "--map",
    "q=${data.q}",
    "",
    "a b",
    "ü",
]
NAMES = st.binary(min_size=1, max_size=12).filter(lambda name: b"\0" not in name).map(os.fsdecode)


def read_by_bash(line: str) -> list[str]:
    words = [sys.executable, "-c", SHOW]
    command = ["bash", "-c", f"{shell_line(words)} {line}"]
    done = subprocess.run(command, capture_output=True, check=True)
    return [os.fsdecode(word) for word in done.stdout.split(b"\0")]


def test_odd_words_survive_the_shell() -> None:
    assert read_by_bash(shell_line(ODD)) == ODD


@settings(max_examples=25)
@given(st.lists(NAMES, min_size=1, max_size=4))
def test_any_name_of_a_file_survives_the_shell(names: list[str]) -> None:
    line = shell_line(names)
    line.encode()
    assert read_by_bash(line) == names
