"""Processes forked off this one, each doing one task at a time.

Python's lock and the C library's memory are a process's own, so processes hold each other up less than threads do
(docs/EXPERIMENTS.md, 99). A fork takes some milliseconds and shares what is loaded already: torch, and a network that
is ready. It is made while no other thread computes, and only on Linux, where the system's libraries bear it.
"""

import contextlib
import ctypes
import gc
import math
import multiprocessing
import os
import queue
import signal
import sys
import threading
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, Generic, Self, TypeVar

Task = TypeVar("Task")
Reply = TypeVar("Reply")
Item = TypeVar("Item")

PR_SET_PDEATHSIG = 1  # of Linux's prctl: the signal that a process gets when its parent is gone
CAN_FORK = sys.platform == "linux"
SECONDS_TO_STOP = 10  # for the task at hand, before it is killed
PATIENCE = 300.0  # seconds for each item of a batch, after which its worker is taken to hang
SECONDS_TO_INTERRUPT = 0.2  # at most, while a result is waited for
LONGEST_WAIT = 1.0  # seconds at once: while this process itself is stopped (Ctrl-Z), no more of patience is used up


class WorkerDiedError(Exception):
    """The process is gone in the middle of a task: out of memory, a crash of a library, or it hung. Says which."""


class Worker(Generic[Task, Reply]):
    """A process that waits for tasks. Tasks and replies are pickled; to be called by one thread at a time."""

    def __init__(self, work: Callable[[Task], Reply]) -> None:
        """Fork. Raises OSError if there may be no more processes."""
        self._died = False
        self._connection, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("fork").Process(
            target=_serve, args=(work, theirs, os.getpid()), daemon=True
        )
        try:
            with interrupts_later(), warnings.catch_warnings():  # of threads in a process that forks: see above
                warnings.simplefilter("ignore", DeprecationWarning)
                self._process.start()
        except OSError:
            self._connection.close()
            raise
        finally:
            theirs.close()

    def __call__(self, task: Task, patience: float = math.inf) -> Reply:
        """Have a task done; without a reply in `patience` seconds the process is killed.

        Raises what the work raises, or WorkerDiedError if the process died or was killed.
        """
        try:
            self._connection.send(task)
            if not self._replies_within(patience):
                self._died = True
                self._process.kill()
                raise WorkerDiedError(f"no result in {patience:.0f} s, so it was killed")
            reply = self._connection.recv()
        except (EOFError, OSError) as error:  # the latter in the middle of a reply
            self._died = True
            self._process.join(SECONDS_TO_STOP)
            code = self._process.exitcode or 0
            cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise WorkerDiedError(cause) from error
        if isinstance(reply, BaseException):
            raise reply
        return reply  # type: ignore[no-any-return]

    def _replies_within(self, seconds: float) -> bool:
        while seconds > 0:
            if self._connection.poll(min(seconds, LONGEST_WAIT)):
                return True
            seconds -= LONGEST_WAIT
        return False

    @property
    def alive(self) -> bool:
        """Whether it can take a task: it didn't die, and wasn't killed, on an earlier one."""
        return not self._died

    def stop(self, patience: float = SECONDS_TO_STOP) -> None:
        """Let it end, in so many seconds."""
        with contextlib.suppress(OSError):
            self._connection.send(None)
        self._process.join(patience)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._connection.close()


class Crew(Generic[Item, Reply]):
    """Workers that take batches of items and reply to each item, or threads of this process where there are none.

    A worker that dies or hangs (`PATIENCE`) is replaced, and its batch repeated item by item: so the item that killed
    it is found, and costs the others nothing but time.
    """

    def __init__(
        self,
        running: list[Worker[Sequence[Item], list[Reply]]],
        work: Callable[[Sequence[Item]], list[Reply]],
        here: Callable[[Sequence[Item]], list[Reply]],
        threads: int,
    ) -> None:
        """work: what another worker does. here: what a thread does instead, of which there are `threads` or none.

        Where there are workers threads stand in one at a time, and only if there may be no more processes.
        """
        self.size = len(running) or threads
        self.forking = threading.Lock()  # whoever computes in this process beside workers holds it
        self._alone = self.forking if running else contextlib.nullcontext()
        self._running = running
        self._work = work
        self._here = here
        self._free: queue.SimpleQueue[Worker[Sequence[Item], list[Reply]] | None] = queue.SimpleQueue()
        for index in range(self.size):
            self._free.put(running[index] if running else None)
        self._pool = ThreadPoolExecutor(self.size, "crew")
        self._waiting: deque[tuple[Sequence[Item], Future[list[Reply]]]] = deque()

    def begin(self, items: Sequence[Item], here: Callable[[Sequence[Item]], list[Reply]] | None = None) -> None:
        """Have a batch done, in a thread by `here` if given."""
        self._waiting.append((items, self._pool.submit(here or self._do, items)))

    @property
    def waiting(self) -> int:
        """Batches that were begun and not told of."""
        return len(self._waiting)

    def done(self, waiting: int) -> Iterator[tuple[Sequence[Item], list[Reply] | WorkerDiedError]]:
        """Wait for batches, in the order in which they began, until no more than `waiting` are left.

        Yields each with its replies; one of a single item whose worker died, with that error. To be called by the
        thread that forked the workers. Raises what the work raises.
        """
        while len(self._waiting) > waiting:
            items, future = self._waiting.popleft()
            try:
                yield items, result_of(future)
            except _DiedOnError as death:
                self._replace(death.worker)
                if len(items) == 1:
                    yield items, death.error
                for item in items if len(items) > 1 else ():
                    self.begin([item])

    def _do(self, items: Sequence[Item]) -> list[Reply]:
        worker = self._free.get()
        try:
            if worker is not None:
                return worker(items, PATIENCE * len(items))
            with self._alone:
                return self._here(items)
        except WorkerDiedError as error:
            assert worker is not None, "threads don't die"
            raise _DiedOnError(worker, error) from error
        finally:
            if worker is None or worker.alive:
                self._free.put(worker)

    def _replace(self, dead: Worker[Any, Any]) -> None:
        dead.stop()
        self._running.remove(dead)
        try:
            with self.forking:
                self._running.append(Worker(self._work))
        except OSError:  # there may be no more processes
            self._free.put(None)
        else:
            self._free.put(self._running[-1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)


class _DiedOnError(Exception):
    """A worker died on a batch."""

    def __init__(self, worker: Worker[Any, Any], error: WorkerDiedError) -> None:
        super().__init__(str(error))
        self.worker = worker
        self.error = error


@contextmanager
def workers(count: int, work: Callable[[Task], Reply]) -> Iterator[list[Worker[Task, Reply]]]:
    """Fork `count` workers, which end with the block.

    There are fewer where the system allows no more processes, none where this one can't fork. If there are any, this
    process computes on one thread from now on, too: others would be missing in a fork, and OpenCV waits for its own.
    The block may put others in the place of those that died.
    """
    running: list[Worker[Task, Reply]] = []
    if count and CAN_FORK and not multiprocessing.current_process().daemon:  # which may have no children
        from sekd_cli.device import set_threads  # noqa: PLC0415 - loads torch, which a worker of its own need not

        set_threads(1)
        with contextlib.suppress(OSError):
            while len(running) < count:
                running.append(Worker(work))
    try:
        yield running
    finally:
        for worker in running:
            worker.stop()


class _Later:
    """A handler of Ctrl-C that notes the first; a second one ends the process, as it does where nothing handles it."""

    came = False

    def __call__(self, *_: object) -> None:
        if self.came:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)
        self.came = True


@contextmanager
def interrupts_later() -> Iterator[None]:
    """Ctrl-C waits for `take_interrupt`, or for the end of the block; a second one ends the process at once.

    Anywhere else it could leave a lock held, for which others then wait for ever, or HDF5 in the middle of a change;
    while Python forks or frees an object, it prints one with a traceback and forgets it.
    """
    before = signal.getsignal(signal.SIGINT)
    here = threading.current_thread() is threading.main_thread()  # which alone is interrupted
    if not here or before is not signal.default_int_handler:  # it may be ignored, or wait already
        yield
        return
    later = _Later()
    signal.signal(signal.SIGINT, later)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if later.came:
        signal.raise_signal(signal.SIGINT)


def take_interrupt() -> None:
    """Raise KeyboardInterrupt if there was a Ctrl-C that waits. To be called where all is in order."""
    handler = signal.getsignal(signal.SIGINT)
    if isinstance(handler, _Later) and handler.came:
        raise KeyboardInterrupt


def result_of(future: Future[Reply]) -> Reply:
    """Wait for what it gives or raises; a Ctrl-C that waits is taken meanwhile."""
    take_interrupt()
    while not wait([future], SECONDS_TO_INTERRUPT).done:
        take_interrupt()
    return future.result()


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
