"""Batches of pairs, made by processes beside the one that trains, in the order of the steps."""

import os
import signal
import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from multiprocessing.queues import Queue
from types import TracebackType

import torch
from torch.utils.data import DataLoader

from sekd_cli.training.dataset import PairBatch, PairDataset, PairPlan, PlanDataset, render

MOST_STEPS = 1 << 40  # of an update: where it ends may be decided under way


def batches_of(
    pairs: PairDataset, first: int, processes: int, device: torch.device
) -> Generator[PairBatch, None, None]:
    """The batches of steps from `first` on, made by so many processes, none: by this one. To be closed.

    A process that dies is a RuntimeError (`DATA_PROCESS_DIED`), wherever this one is then.
    """
    itself = device.type == "cpu"  # or data processes send what to render, and the device renders it
    loader: DataLoader[PairBatch | PairPlan] = DataLoader(
        pairs if itself else PlanDataset(pairs),
        batch_size=None,
        sampler=range(first, MOST_STEPS),
        num_workers=processes,
        prefetch_factor=4 if processes else None,
        pin_memory=device.type == "cuda",
        worker_init_fn=_begin_data_process,
    )
    with _interrupts_ignored():  # by the processes, too, from their beginning
        parts = iter(loader)
    try:
        for part in parts:
            if isinstance(part, PairPlan):
                yield render(part, pairs.settings.height, pairs.settings.width, device)
            else:
                yield part
    finally:  # here, as Python ignores a Ctrl-C while it destroys `parts`, which waits for the processes too
        getattr(parts, "_shutdown_workers", lambda: None)()


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # which alone may say so
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _begin_data_process(worker: int) -> None:
    """Data processes use one thread each: two busy processes waiting for each other's threads cost ten times.

    Nor do they complain when who takes their batches goes away in the middle of one, which is what Ctrl-C does. They
    end with a batch that can't be sent, as where shared memory is too small for it: it would be waited for without end.
    """
    del worker
    torch.set_num_threads(1)
    Queue._on_queue_feeder_error = lambda *_: os._exit(1)  # type: ignore[attr-defined]
    sys.excepthook = _but_for_broken_connections  # what goes wrong with a batch is raised by whoever takes it


def _but_for_broken_connections(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    if not issubclass(kind, EOFError | ConnectionError):
        sys.__excepthook__(kind, error, where)
