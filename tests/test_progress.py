"""Progress bars, as people at a terminal see them."""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

import pytest

from sekd_cli.commands.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def not_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever command ran before."""
    monkeypatch.setattr(logging.getLogger("sekd_cli"), "handlers", [])


@contextmanager
def at_terminal() -> Iterator[Terminal]:
    """What stands for stderr meanwhile."""
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(Terminal()) as screen:
        patch.setenv("TERM", "xterm")
        patch.setenv("COLUMNS", "200")
        yield screen


def test_a_terminal_shows_how_many_are_done_and_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    with at_terminal() as terminal, progress_bar("extract", 7) as bar:
        bar.advance(2)
        bar.advance(3, "[red]a[/red].jpg")
        bar.progress.refresh()
        assert (bar.progress.tasks[0].completed, bar.progress.tasks[0].total) == (5, 7)
    assert "5/7" in terminal.getvalue()
    assert "[red]a[/red].jpg" in terminal.getvalue()  # as it is
    assert capsys.readouterr().out == ""


def test_a_kill_leaves_the_terminal_its_cursor() -> None:
    with at_terminal() as terminal, progress_bar("extract", 7) as bar:
        bar.progress.refresh()
        written = terminal.getvalue()
    assert written.rfind("\x1b[?25h") > written.rfind("\x1b[?25l")  # shown after it was hidden


def test_a_rate_is_told_of_what_is_not_done_yet() -> None:
    with at_terminal() as terminal, progress_bar("match", 7, "pairs") as bar:
        bar.progress.get_time = iter(range(1000)).__next__
        bar.advance(2)
        bar.advance(2)
        bar.progress.refresh()
    assert "pairs/s" in terminal.getvalue()


def test_work_in_several_parts_has_a_bar_that_begins_anew() -> None:
    with at_terminal() as terminal, progress_bar("read images", None) as bar:
        bar.progress.get_time = iter(range(1000)).__next__
        for done in (1, 3):
            bar.tell("read images", done, 3)
            bar.progress.refresh()
        assert (bar.progress.tasks[0].completed, bar.progress.tasks[0].total) == (3, 3)
        bar.tell("write pairs", 2, None)
        assert (bar.progress.tasks[0].completed, bar.progress.tasks[0].total) == (2, None)
        for done in (2, 5):
            bar.tell("verify pairs", done, 9)
            bar.progress.refresh()
        assert (bar.progress.tasks[0].completed, bar.progress.tasks[0].total) == (5, 9)
    shown = terminal.getvalue()
    assert "3/3" in shown
    assert "images/s" in shown
    assert "5/9" in shown
    assert shown.rindex("pairs/s") > shown.rindex("images/s")


@pytest.mark.parametrize(("level", "shown"), [(logging.INFO, True), (logging.WARNING, False)])
def test_quiet_shows_no_bar(level: int, shown: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = logging.NullHandler()
    handler.setLevel(level)
    monkeypatch.setattr(logging.getLogger("sekd_cli"), "handlers", [handler])
    with at_terminal() as terminal, progress_bar("extract", 7) as bar:
        bar.advance()
        bar.progress.refresh()
    assert bool(terminal.getvalue()) == shown


def test_what_is_no_terminal_gets_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.delenv("TTY_COMPATIBLE", raising=False)
    with redirect_stderr(io.StringIO()) as log, progress_bar("extract", 7) as bar:
        bar.advance()
    assert log.getvalue() == ""
