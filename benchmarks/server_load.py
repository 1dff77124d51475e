"""The cost of a run for the Prefect server: task runs, database, processor time, and its delay when the run ends.

python benchmarks/server_load.py --full
"""

from __future__ import annotations

import sys

from measuring import Group, Preset, Work, command_line, measure_all
from results import Measurement, table

NAME = "server_load"
ALL = ("map", "auto", "line", "chunk")
QUICK = Preset([Group(ALL, [100])], rounds=1)
FULL = Preset([Group(ALL, [2_000]), Group(["auto"], [20_000])], rounds=3)


def task_runs(measurement: Measurement) -> float:
    """The task runs that the server has."""
    return float(measurement["server"]["task_runs"])


def database_mb(measurement: Measurement) -> float:
    """The growth of its database."""
    return float(measurement["server"]["database_bytes"] / 2**20)


def server_cpu_sec(measurement: Measurement) -> float:
    """Its processor time, from before the run until it had settled."""
    return float(measurement["server"]["cpu_sec"])


def behind_sec(measurement: Measurement) -> float | None:
    """Seconds from the end of the run until the API shows all its runs in their last states; `None` if it never did."""
    seconds = measurement["server"]["end_sec"]
    return None if seconds is None else float(seconds)


def main() -> int:
    """Measure and print."""
    given = command_line(__doc__, QUICK, FULL)
    results = measure_all(NAME, given, Work())
    return results.tell(
        table("task runs", results.rows(task_runs), 0),
        table("database, MB", results.rows(database_mb), 2),
        table("server's processor, s", results.rows(server_cpu_sec), 1),
        table("behind the run's end, s", results.rows(behind_sec), 1),
    )


if __name__ == "__main__":
    sys.exit(main())
