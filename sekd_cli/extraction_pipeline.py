"""Many photographs to one file: decoding, network and writing overlap, and one bad image stops none of the others.

Headers are read ahead, so that images of one size can share a batch. On a CPU several processes take a batch
each, decode its images and run the network on one thread, which is then as fast as it can be. Where there are none, on
a GPU above all, threads do it, whose networks wait for their turn. Another thread writes. All that waits is bounded, so
a thousand photographs need the memory of ten.
"""

import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import torch

from sekd_cli.batch_extraction import GIVE_BACK_EVERY, Batch, BatchExtractor, BatchWorker, Extracted, Job
from sekd_cli.device import give_back_memory
from sekd_cli.errors import ImageError
from sekd_cli.feature_file import FeatureWriter
from sekd_cli.image_search import ImageEntry
from sekd_cli.images import read_image_size
from sekd_cli.stored_features import Source, StoredFeatures
from sekd_cli.workers import Crew, WorkerDiedError, result_of

logger = logging.getLogger(__name__)

PREFETCH_PIXELS = 50_000_000  # larger images are decoded one at a time, when their turn comes
LARGE_PIXELS = 4_000_000  # seen by the network: such an image has all threads, alone, as memory for several may lack
HEADERS_AHEAD = 32  # images whose size is known before their turn comes
WAITING_TO_BE_WRITTEN = 8  # images whose features wait for the disk
COMMIT_IMAGES, COMMIT_SECONDS = 16, 0.1  # features are made durable, and reported, after so many or so long


class Outcome(NamedTuple):
    """What became of an image: its features are in the file, or why they are not."""

    entry: ImageEntry
    keypoints: int
    failure: str | None = None


@dataclass(frozen=True, kw_only=True)
class PipelineSettings:
    """Affects speed and memory; in the file only the type of descriptors."""

    batch_size: int = 1
    batch_pixels: int = 0  # of all sizes of its images, beyond which a batch gets no more of them; 0 for no limit
    readers: int = 2  # threads that read headers, and decode where there are no worker processes
    threads: int = 1  # of the network on a CPU
    descriptor_dtype: str = "float32"


def extract_all(
    jobs: Iterable[Job],
    here: BatchExtractor,
    writer: FeatureWriter,
    settings: PipelineSettings,
    workers: list[BatchWorker] | None = None,
) -> Iterator[Outcome]:
    """Extract every job into the file; yields each outcome once its features are durable, in no particular order.

    here: what threads of this process do. workers: processes that do the same; in place of one that dies another is
    put. Raises OutputError if the file can't be written.
    """
    background = _BackgroundWriter(writer, settings.descriptor_dtype)
    with ThreadPoolExecutor(settings.readers, "read") as readers:
        extraction = _Extraction(here, settings, readers, workers or [])
        with extraction.crew, background:
            sized = _sizes_ahead(jobs, here, readers)
            for number, batch in enumerate(_batches(sized, settings), start=1):
                if number % GIVE_BACK_EVERY == 0:
                    give_back_memory()
                if isinstance(batch, Outcome):
                    yield batch
                else:
                    extraction.begin(batch)
                    yield from extraction.hand_on(background)
                yield from background.finished()
            yield from extraction.hand_on(background, everything=True)
    yield from background.finished()


class _Extraction:
    """Has several batches done at once, each on one thread; a large image has all threads, one by one."""

    def __init__(
        self, here: BatchExtractor, settings: PipelineSettings, readers: ThreadPoolExecutor, workers: list[BatchWorker]
    ) -> None:
        self._here = here
        self._threads = settings.threads
        self._turns = threading.Semaphore(settings.threads)
        self._readers = readers
        self.crew = Crew(workers, here, self._by_turns, settings.threads + 1)  # one decodes while the others compute

    def begin(self, batch: "_SizedBatch") -> None:
        """Let a thread or process take this batch."""
        how = None if not batch.large else self._huge_alone if batch.huge else self._alone
        self.crew.begin(batch.jobs, how)

    def hand_on(self, background: "_BackgroundWriter", *, everything: bool = False) -> Iterator[Outcome]:
        """Give features to the writer while more batches wait than can be done; yields what failed."""
        for jobs, found in self.crew.done(0 if everything else self.crew.size):
            if isinstance(found, WorkerDiedError):
                reason = f"the process that extracted it died ({found}), for lack of memory or by damage to the file"
                yield _failed(jobs[0], f"{jobs[0].entry.path}: {reason}; make it smaller, or convert it to PNG")
                continue
            for job, one in zip(jobs, found, strict=True):
                if one.features is None:
                    yield _failed(job, one.failure)
                else:
                    background.put(job, one.features, one.source)

    def _by_turns(self, jobs: Batch) -> list[Extracted]:
        loaded = list(self._readers.map(self._here.load, jobs))
        with self._turns:
            torch.set_num_threads(1)
            return self._here.features(loaded)

    def _alone(self, jobs: Batch) -> list[Extracted]:
        """A large image: decoded while others are computed, computed on all threads."""
        loaded = [self._here.load(job) for job in jobs]
        with self.crew.forking, self._turns:
            torch.set_num_threads(self._threads)
            return self._here.features(loaded)

    def _huge_alone(self, jobs: Batch) -> list[Extracted]:
        """A huge one: not even decoded before its turn."""
        with self.crew.forking, self._turns:
            torch.set_num_threads(self._threads)
            return self._here.features([self._here.load(job) for job in jobs])


class _Sized(NamedTuple):
    """An image whose header was read."""

    job: Job
    padded: tuple[tuple[int, int], ...]  # what the network will see at every size, as the image lies in the file
    large: bool  # to be done alone
    huge: bool  # and not to be decoded before


class _SizedBatch(NamedTuple):
    """Images to be done together."""

    jobs: list[Job]
    large: bool = False
    huge: bool = False


def _sizes_ahead(jobs: Iterable[Job], here: BatchExtractor, readers: ThreadPoolExecutor) -> Iterator[_Sized | Outcome]:
    """The sizes of images in the order of the jobs, or why one can't be read."""

    def sized(job: Job) -> _Sized:
        width, height = read_image_size(job.entry.path, max_pixels=here.max_pixels)
        padded = here.extractor.padded_sizes_of(width, height)
        seen = sum(rows * columns for rows, columns in padded)
        huge = width * height > PREFETCH_PIXELS
        if not huge:
            _read_ahead(job.entry.path)
        return _Sized(job, padded, large=huge or seen >= LARGE_PIXELS, huge=huge)

    waiting: deque[tuple[Job, Future[_Sized]]] = deque()
    remaining = iter(jobs)
    try:
        while True:
            while len(waiting) < HEADERS_AHEAD and (job := next(remaining, None)) is not None:
                waiting.append((job, readers.submit(sized, job)))
            if not waiting:
                return
            job, future = waiting.popleft()
            try:
                yield result_of(future)
            except ImageError as error:
                yield _failed(job, str(error))
    finally:
        for _, future in waiting:
            future.cancel()


def _read_ahead(path: Path) -> None:
    """Have the system read a file before it is needed, so that the processes wait for no disk."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError), path.open("rb") as file:  # reading it says what is wrong
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def _batches(sized: Iterable[_Sized | Outcome], settings: PipelineSettings) -> Iterator[_SizedBatch | Outcome]:
    """Images of equal padded sizes together, as many as the settings let; at most four batches wait to become full."""
    pending: dict[tuple[tuple[int, int], ...], list[Job]] = {}
    for item in sized:
        if isinstance(item, Outcome):
            yield item
            continue
        if item.large:
            yield _SizedBatch([item.job], large=True, huge=item.huge)
            continue
        pending.setdefault(item.padded, []).append(item.job)
        pixels = sum(height * width for height, width in item.padded)
        count = settings.batch_pixels // pixels if settings.batch_pixels else settings.batch_size
        if len(pending[item.padded]) >= min(count, settings.batch_size):
            yield _SizedBatch(pending.pop(item.padded))
        elif sum(map(len, pending.values())) >= 4 * settings.batch_size:
            yield _SizedBatch(pending.pop(max(pending, key=lambda sizes: len(pending[sizes]))))
    for jobs in pending.values():
        yield _SizedBatch(jobs)


def _failed(job: Job, reason: str) -> Outcome:
    logger.debug("failed: %s", reason)
    return Outcome(job.entry, 0, reason)


class _BackgroundWriter:
    """Writes in a thread of its own, durable every so many images; an error comes up at the next call."""

    def __init__(self, writer: FeatureWriter, descriptor_dtype: str) -> None:
        self._writer = writer
        self._descriptor_dtype = descriptor_dtype
        self._queue: queue.Queue[tuple[Job, StoredFeatures, Source] | None] = queue.Queue(WAITING_TO_BE_WRITTEN)
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._written: list[Outcome] = []  # in the file, but not yet durable
        self._due = 0.0  # when they should be, by the monotonic clock
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="write", daemon=True)

    def put(self, job: Job, features: StoredFeatures, source: Source) -> None:
        """Hand over the features of an image; waits while too many wait."""
        self._raise()
        self._queue.put((job, features, source))

    def finished(self) -> Iterator[Outcome]:
        """What was written, or refused, since the last call."""
        self._raise()
        while not self._outcomes.empty():
            yield self._outcomes.get()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Wait until everything is written."""
        self._queue.put(None)
        self._thread.join()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while True:
            wait = self._due - time.monotonic() if self._written else None
            if wait is not None and (wait <= 0 or len(self._written) >= COMMIT_IMAGES):
                self._commit()
                continue
            try:
                item = self._queue.get(timeout=wait)
            except queue.Empty:
                continue
            if item is None:
                break
            if self._error is None:  # else nothing can be written any more; let the caller come and see
                self._write(*item)
        self._commit()

    def _write(self, job: Job, features: StoredFeatures, source: Source) -> None:
        try:
            self._writer.write(job.entry.name, features, source=source, descriptor_dtype=self._descriptor_dtype)
        except ImageError as error:
            self._outcomes.put(_failed(job, str(error)))
        except Exception as error:  # raised again in the caller's thread
            self._error = error
        else:
            if not self._written:
                self._due = time.monotonic() + COMMIT_SECONDS
            self._written.append(Outcome(job.entry, len(features)))

    def _commit(self) -> None:
        """Make durable what was written, and tell of it."""
        done, self._written = self._written, []
        if self._error is not None or not done:
            return
        try:
            self._writer.commit()
        except Exception as error:  # raised again in the caller's thread
            self._error = error
            return
        for outcome in done:
            self._outcomes.put(outcome)
