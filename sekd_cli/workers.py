"""Processes forked off this one, each doing one task at a time.

Python's lock and the C library's memory are a process's own, so processes hold each other up less than threads do
(docs/EXPERIMENTS.md, 99). A fork takes some milliseconds and shares what is loaded already: torch, and a network that
is ready. It is made while no other thread computes, and only on Linux, where the system's libraries bear it.
"""

import contextlib
import ctypes
import gc
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

Task = TypeVar("Task")
Reply = TypeVar("Reply")

PR_SET_PDEATHSIG = 1  # of Linux's prctl: the signal that a process gets when its parent is gone
CAN_FORK = sys.platform == "linux"
SECONDS_TO_STOP = 10  # for the task at hand, before it is killed


class WorkerDiedError(Exception):
    """The process is gone in the middle of a task: out of memory, or a crash of a library. Says by what signal."""


class Worker(Generic[Task, Reply]):
    """A process that waits for tasks. Tasks and replies are pickled; to be called by one thread at a time."""

    def __init__(self, work: Callable[[Task], Reply]) -> None:
        """Fork. Raises OSError if there may be no more processes."""
        self._connection, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("fork").Process(
            target=_serve, args=(work, theirs, os.getpid()), daemon=True
        )
        try:
            self._process.start()
        except OSError:
            self._connection.close()
            raise
        finally:
            theirs.close()

    def __call__(self, task: Task) -> Reply:
        """Have it done. Raises what the work raises, WorkerDiedError."""
        try:
            self._connection.send(task)
            reply = self._connection.recv()
        except (EOFError, ConnectionError) as error:
            self._process.join(SECONDS_TO_STOP)
            code = self._process.exitcode or 0
            cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise WorkerDiedError(cause) from error
        if isinstance(reply, BaseException):
            raise reply
        return reply  # type: ignore[no-any-return]

    def stop(self) -> None:
        """Let it end."""
        with contextlib.suppress(OSError):
            self._connection.send(None)
        self._process.join(SECONDS_TO_STOP)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._connection.close()


@contextmanager
def workers(count: int, work: Callable[[Task], Reply]) -> Iterator[list[Worker[Task, Reply]]]:
    """So many, fewer where there may be no more processes, none where this system can't fork; they end with the block.

    The block may put others in the place of those that died.
    """
    running: list[Worker[Task, Reply]] = []
    if CAN_FORK:
        with contextlib.suppress(OSError):
            while len(running) < count:
                running.append(Worker(work))
    try:
        yield running
    finally:
        for worker in running:
            worker.stop()


def _serve(work: Callable[[Any], Any], connection: Connection, parent: int) -> None:
    """The life of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all, and the parent tells when to stop
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before
        return
    gc.freeze()  # what the parent has isn't collected here: open files would be closed, memory no longer shared
    with contextlib.suppress(EOFError):
        while (task := connection.recv()) is not None:
            connection.send(_reply(work, task))


def _reply(work: Callable[[Any], Any], task: Any) -> Any:
    try:
        return work(task)
    except Exception as error:  # raised again in the parent
        error.add_note(traceback.format_exc())
        return error
