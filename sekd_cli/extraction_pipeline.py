"""Many photographs to one file: decoding, network and writing overlap, and one bad image stops none of the others.

Threads decode ahead of the network, which does as many images at once as it has threads, for on one thread each the
network is as fast as it can be; another thread writes. Every queue is bounded, so a thousand photographs need the
memory of ten.
"""

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import torch

from sekd_cli.device import give_back_memory
from sekd_cli.errors import ImageError
from sekd_cli.extraction import Extractor
from sekd_cli.feature_file import FeatureWriter
from sekd_cli.images import DEFAULT_MAX_PIXELS, ImageEntry, read_image, read_image_size, read_mask
from sekd_cli.pyramid import PreparedImage
from sekd_cli.stored_features import Source, StoredFeatures, source_of

logger = logging.getLogger(__name__)

PREFETCH_PIXELS = 50_000_000  # larger images are decoded one at a time, when their turn comes
LARGE_PIXELS = 4_000_000  # seen by the network: such an image has all threads, alone, as memory for several may lack
DECODED_PER_WORKER = 2  # images that wait decoded, for each decoding thread
GIVE_BACK_EVERY = 64  # batches: features of that many may lie about as free memory
WAITING_TO_BE_WRITTEN = 8  # images whose features wait for the disk
COMMIT_IMAGES, COMMIT_SECONDS = 16, 0.1  # features are made durable, and reported, after so many or so long


class Job(NamedTuple):
    """An image to extract, and its mask if it has one."""

    entry: ImageEntry
    mask: Path | None = None


class Outcome(NamedTuple):
    """What became of an image: its features are in the file, or why they are not."""

    entry: ImageEntry
    keypoints: int
    failure: str | None = None


class _Loaded(NamedTuple):
    """An image ready for the network."""

    job: Job
    image: PreparedImage
    source: Source


@dataclass(frozen=True, kw_only=True)
class PipelineSettings:
    """What decides speed and memory, and no number in the file but the type of descriptors."""

    batch_size: int = 1
    batch_pixels: int = 0  # of all sizes of its images, beyond which a batch gets no more of them; 0 for no limit
    workers: int = 2  # decoding threads
    threads: int = 1  # of the network on a CPU
    max_pixels: int = DEFAULT_MAX_PIXELS  # largest image to decode; 0 for no limit
    descriptor_dtype: str = "float32"


def extract_all(
    jobs: Iterable[Job], extractor: Extractor, writer: FeatureWriter, settings: PipelineSettings
) -> Iterator[Outcome]:
    """Extract every job into the file; yields each outcome once its features are durable, in no particular order.

    Raises OutputError if the file can't be written.
    """
    background = _BackgroundWriter(writer, settings.descriptor_dtype)
    with _Network(extractor, settings.threads) as network, background:
        with ThreadPoolExecutor(settings.workers, "decode") as pool:
            loaded = _load_ahead(jobs, extractor, settings, pool)
            for number, batch in enumerate(_batches(loaded, extractor, settings), start=1):
                if number % GIVE_BACK_EVERY == 0:
                    give_back_memory()
                if isinstance(batch, Outcome):
                    yield batch
                else:
                    network.begin(batch)
                    yield from network.hand_on(background)
                yield from background.finished()
            yield from network.hand_on(background, everything=True)
        background.finish()
        yield from background.finished()


class _Network:
    """Runs the extractor on several batches at once, each on one thread; a large image has all threads, one by one.

    That is done by the thread that asks, whose memory comes from the one arena that has blocks of any size (see
    `keep_freed_memory`); those of the pool begin before all others, to have an arena each.
    """

    def __init__(self, extractor: Extractor, threads: int) -> None:
        self._extractor = extractor
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, "network", initializer=torch.set_num_threads, initargs=(1,))
        self._running: deque[tuple[list[_Loaded], Future[list[StoredFeatures]]]] = deque()

    def begin(self, batch: list[_Loaded]) -> None:
        """Let a thread take this batch; one of a large image is done when this returns."""
        images = [item.image for item in batch]
        if sum(level.grey.size for image in images for level in image.levels) < LARGE_PIXELS:
            future = self._pool.submit(self._extractor.extract, images)
        else:
            future = self._done_alone(images)
        self._running.append((batch, future))

    def hand_on(self, background: "_BackgroundWriter", *, everything: bool = False) -> Iterator[Outcome]:
        """Give features to the writer while more batches wait than threads can take; yields what failed."""
        while len(self._running) > (0 if everything else self._threads):
            batch, future = self._running.popleft()
            try:
                features = future.result()
            except ImageError as error:  # only of a batch of one
                yield _failed(batch[0].job, f"{batch[0].job.entry.path}: {error}")
                continue
            for item, one in zip(batch, features, strict=True):
                background.put(item.job, one, item.source)

    def __enter__(self) -> Self:
        all_there = threading.Barrier(self._threads)
        list(self._pool.map(lambda _: all_there.wait(), range(self._threads)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _done_alone(self, images: list[PreparedImage]) -> Future[list[StoredFeatures]]:
        future: Future[list[StoredFeatures]] = Future()
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            future.set_result(self._extractor.extract(images))
        except ImageError as error:
            future.set_exception(error)
        finally:
            torch.set_num_threads(before)
        return future


def _load(job: Job, extractor: Extractor, max_pixels: int) -> _Loaded:
    try:
        source = source_of(job.entry.path, job.mask)  # before reading: a later change is then noticed
    except OSError:
        source = Source(0, 0)  # reading says what is wrong
    photograph = read_image(job.entry.path, max_pixels=max_pixels)
    mask = None if job.mask is None else read_mask(job.mask, photograph)
    return _Loaded(job, extractor.prepare(photograph, mask), source)


def _load_ahead(
    jobs: Iterable[Job], extractor: Extractor, settings: PipelineSettings, pool: ThreadPoolExecutor
) -> Iterator[_Loaded | Outcome]:
    """Decoded images in the order of the jobs, or why one can't be read."""

    def load_small(job: Job) -> _Loaded | None:
        width, height = read_image_size(job.entry.path, max_pixels=settings.max_pixels)
        small = width * height <= PREFETCH_PIXELS
        return _load(job, extractor, settings.max_pixels) if small else None

    waiting: deque[tuple[Job, Future[_Loaded | None]]] = deque()
    remaining = iter(jobs)
    try:
        while True:
            while len(waiting) < settings.workers * DECODED_PER_WORKER and (job := next(remaining, None)) is not None:
                waiting.append((job, pool.submit(load_small, job)))
            if not waiting:
                return
            job, future = waiting.popleft()
            try:
                yield future.result() or _load(job, extractor, settings.max_pixels)
            except ImageError as error:
                yield _failed(job, str(error))
            except MemoryError:
                yield _failed(job, f"{job.entry.path}: too large for the memory; make it smaller")
    finally:
        for _, future in waiting:
            future.cancel()


def _batches(
    loaded: Iterable[_Loaded | Outcome], extractor: Extractor, settings: PipelineSettings
) -> Iterator[list[_Loaded] | Outcome]:
    """Images of equal padded sizes together, as many as the settings let; at most four batches wait to become full."""
    pending: dict[tuple[tuple[int, int], ...], list[_Loaded]] = {}
    for item in loaded:
        if isinstance(item, Outcome):
            yield item
            continue
        sizes = extractor.padded_sizes(item.image)
        pending.setdefault(sizes, []).append(item)
        pixels = sum(height * width for height, width in sizes)
        count = max(1, settings.batch_pixels // pixels) if settings.batch_pixels else settings.batch_size
        if len(pending[sizes]) >= min(count, settings.batch_size):
            yield pending.pop(sizes)
        elif sum(map(len, pending.values())) >= 4 * settings.batch_size:
            yield pending.pop(max(pending, key=lambda sizes: len(pending[sizes])))
    yield from pending.values()


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

    def finish(self) -> None:
        """Wait until everything is written."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()
        self._raise()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._thread.is_alive():
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
