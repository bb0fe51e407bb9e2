"""Progress bars on stderr, shared by the subcommands: for people at a terminal, absent in logs and with --quiet."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class Bar(NamedTuple):
    """A running progress bar."""

    progress: Progress
    task: TaskID

    def advance(self, steps: float = 1, note: str | None = None) -> None:
        """So many more are done; `note` replaces what is written behind the bar (losses, failures)."""
        if note is None:
            self.progress.advance(self.task, steps)
        else:
            self.progress.update(self.task, advance=steps, note=note)

    def tell(self, what: str, done: int, total: int | None) -> None:
        """So many of `total` are done of `what` ("verify pairs"); if it told of something else the bar begins anew."""
        task = self.progress.tasks[self.task]
        if task.description != what:
            task.total = total  # which `reset` leaves as it is if it isn't known
            self.progress.reset(self.task, description=what, unit=what.rsplit(maxsplit=1)[-1], note="")
        self.progress.update(self.task, completed=done, total=total)


class _Rate(ProgressColumn):
    """How many a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} {task.fields['unit']}/s", style="progress.data.speed")


@contextmanager
def progress_bar(description: str, total: float | None, unit: str = "images") -> Iterator[Bar]:
    """A bar on stderr while the block runs; `total` None for work without a known end. Logging goes above it."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    hidden = not console.is_terminal or not _wanted()
    progress = Progress(*columns, console=console, transient=True, disable=hidden)
    with nullcontext() if hidden else progress:  # before 14.3 rich ends with an empty line even a bar that isn't shown
        if not hidden:
            console.show_cursor()  # which rich takes away: a kill, or Ctrl-C twice, would leave the terminal without
        yield Bar(progress, progress.add_task(description, total=total, unit=unit, note=""))


def _wanted() -> bool:
    """Whether people are told what goes on: not with --quiet."""
    handlers = logging.getLogger("sekd_cli").handlers
    return not handlers or handlers[0].level <= logging.INFO
