"""The progress of a run, while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Self

from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from prefect_batchflow.cli.screen import console, printable
from prefect_batchflow.report.summary import seconds_text

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console, RenderableType

    from prefect_batchflow.run.handle import ProgressReport

_BAR_FROM_COLUMNS = 60


def progress_text(report: ProgressReport) -> str:
    """The progress in one line: `40 of 136 lines, 2 failed, 4 running, 12.3 per second, 8 s left`."""
    ended = report.completed_lines + report.failed_lines
    parts = [f"{ended} of {report.total_lines} lines"]
    if report.failed_lines:
        parts.append(f"{report.failed_lines} failed")
    if report.running_lines:
        parts.append(f"{report.running_lines} running")
    if report.waiting_lines:
        parts.append(waiting_text(report))
    ran = ended - report.reused_lines
    if ran > 0 and report.elapsed_sec > 0:
        rate = ran / report.elapsed_sec
        parts.append(f"{rate:.3g} per second")
        if ended < report.total_lines:
            parts.append(f"{seconds_text(max(1, round((report.total_lines - ended) / rate)))} left")
    if ended >= report.total_lines:
        parts.append("finishing the run")
    return ", ".join(parts)


def waiting_text(report: ProgressReport) -> str:
    """The lines that wait for a service: `12 lines wait for the service (429, next in 8 s)`."""
    count = report.waiting_lines
    who = "1 line waits" if count == 1 else f"{count} lines wait"
    status = f"{report.wait_status}, " if report.wait_status else ""
    return f"{who} for the service ({status}next in {seconds_text(max(1, round(report.next_wait_sec)))})"


class Progress:
    """Shows the progress on standard error: one line that is redrawn on a terminal, elsewhere a new line now and then.

    Args:
        screen: Where to write; `None` is standard error.
        living: Whether to redraw one line; `None` does so on a terminal.
    """

    PLAIN_STEPS: Final = 10
    """Elsewhere, a new line after each tenth of the lines,"""
    PLAIN_AT_LEAST_SEC: Final = 2.0
    """but at most this often,"""
    PLAIN_AT_MOST_SEC: Final = 60.0
    """and at least this often."""

    def __init__(self, screen: Console | None = None, *, living: bool | None = None) -> None:
        self._console = screen or console(error=True)
        self._what = ""
        self._printed: set[str] = set()
        self._report: ProgressReport | None = None
        self._told = (0, 0.0)
        self._waited = False
        """Whether the last line that was printed had lines that wait."""
        self._spinner = Spinner("dots")
        self._live: Live | None = None
        if self._console.is_terminal if living is None else living:
            self._live = Live(console=self._console, get_renderable=self._line, refresh_per_second=8, transient=True)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, what: str) -> None:
        """Show what happens apart from lines, such as the start of a server. It stays until the next report."""
        self._what = what
        if self._live is None and what not in self._printed:
            self._printed.add(what)
            self._console.print(Text(printable(what)))

    def note(self, text: str) -> None:
        """Show a note that stays on the screen."""
        self._console.print(Text(printable(f"Note: {text}")))

    def update(self, report: ProgressReport) -> None:
        """Take a report, and show it when it is due."""
        self._report, self._what = report, ""
        if self._live is None and self._is_due(report):
            self._console.print(Text(progress_text(report)))

    def _is_due(self, report: ProgressReport) -> bool:
        ended = report.completed_lines + report.failed_lines
        step = ended * self.PLAIN_STEPS // max(report.total_lines, 1)
        last_step, last_sec = self._told
        waited = report.elapsed_sec - last_sec
        begins_to_wait = report.waiting_lines > 0 and not self._waited
        is_news = step > last_step or begins_to_wait
        if waited < (self.PLAIN_AT_LEAST_SEC if is_news else self.PLAIN_AT_MOST_SEC):
            return False
        self._waited = report.waiting_lines > 0
        self._told = (step, report.elapsed_sec)
        return True

    def _line(self) -> RenderableType:
        report = self._report
        if report is None or self._what:
            self._spinner.update(text=Text(printable(self._what or "Starting")))
            return self._spinner
        line = Table.grid(padding=(0, 1))
        ended = report.completed_lines + report.failed_lines
        text = Text(progress_text(report), no_wrap=True, overflow="ellipsis")
        if self._console.width < _BAR_FROM_COLUMNS:
            return text
        line.add_row(ProgressBar(total=max(report.total_lines, 1), completed=ended, width=24), text)
        return line
