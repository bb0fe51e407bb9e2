"""Many pairs of a feature file to one match file: each image read a few times only, pairs matched in parallel.

On a CPU several processes match, each of which reads what it needs; elsewhere threads do. One thread writes.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from sekd_cli.config import MatchingSettings, VerificationSettings
from sekd_cli.device import give_back_memory
from sekd_cli.errors import ImageError
from sekd_cli.feature_cache import CameraOf, FeatureCache, ImageCache, Plan, order_in_blocks, size_of
from sekd_cli.feature_file import FeatureReader
from sekd_cli.match_file import MatchWriter
from sekd_cli.match_writing import COMMIT_PAIRS, Matched, Outcome, Written, is_done
from sekd_cli.pair_matching import MatchableImage, match_images, match_together
from sekd_cli.pairs import Pair
from sekd_cli.stored_matches import StoredMatches
from sekd_cli.workers import Crew, Worker, WorkerDiedError

BATCHES_IN_FLIGHT = 4  # for each thread: enough that none waits while features are read or matches written

Batch = list[tuple[MatchableImage, MatchableImage]]
"""Pairs that are matched together."""

TASK_PAIRS = 32  # that a process takes at a time, fewer where there are few: 0.2 s
GIVE_BACK_EVERY = 16  # tasks: images that others took the place of lie about as free memory
ROWS_OF_CACHE = 0.5  # of a process's memory for features: those of the rows of a block


@dataclass(frozen=True, kw_only=True)
class PipelineSettings:
    """What decides speed and memory, and no number in the file."""

    device: torch.device
    threads: int = 1  # pairs matched at once
    cache_bytes: int = 1 << 30  # of features in memory
    update: bool = False  # match pairs again whose features changed since
    batch_values: int = 0  # similarities of pairs that are matched together, padding included; 0: one pair at a time


class PairMatcher:
    """From names to matches: what a worker process does."""

    def __init__(
        self,
        path: Path,
        cache_bytes: int,
        matching: MatchingSettings,
        verification: VerificationSettings | None = None,
        camera_of: CameraOf = lambda name, size: None,
    ) -> None:
        """path: of the feature file, opened by whoever matches first. cache_bytes: of features in its memory."""
        self._path = path
        self._cache_bytes = cache_bytes
        self._matching = matching
        self._verification = verification
        self._camera_of = camera_of
        self._images: ImageCache | None = None
        self._tasks = 0

    def __call__(self, pairs: Sequence[Pair]) -> list[Matched]:
        """The matches of each."""
        if self._images is None:
            self._images = ImageCache(
                FeatureReader(self._path),
                torch.device("cpu"),
                self._cache_bytes,
                self._camera_of,
                turned=self._matching.rotations,
            )
        self._tasks += 1
        if self._tasks % GIVE_BACK_EVERY == 0:
            give_back_memory()
        return [self._matched(self._images.get(first), self._images.get(second)) for first, second in pairs]

    def _matched(self, image0: MatchableImage | str, image1: MatchableImage | str) -> Matched:
        if isinstance(image0, str) or isinstance(image1, str):
            return Matched(None, failure=_reasons(image0, image1))
        try:
            matches = match_images(image0, image1, self._matching, self._verification)
        except ImageError as error:
            return Matched(None, failure=str(error))
        return Matched(matches, (image0.fingerprint, image1.fingerprint))


PairWorker = Worker[Sequence[Pair], list[Matched]]


def match_all(
    work: Plan,
    features: FeatureReader,
    writer: MatchWriter,
    settings: PipelineSettings,
    *,
    matching: MatchingSettings,
    verification: VerificationSettings | None = None,
    camera_of: CameraOf = lambda name, size: None,
    workers: list[PairWorker] | None = None,
) -> Iterator[Outcome]:
    """Match every pair into the file; yields each outcome once its matches are durable, in no particular order.

    workers: processes that do so with a `PairMatcher` of the same features and settings; in place of one that dies
    another is put. Raises OutputError if the file can't be written or holds matches of other features, DeviceError if
    the device runs out of memory.
    """
    if workers:
        share = settings.cache_bytes // len(workers)
        matcher = PairMatcher(features.path, share, matching, verification, camera_of)
        fingerprint_of = _Fingerprints(features, turned=matching.rotations)
        yield from _match_by_workers(
            work, writer, settings, matcher=matcher, workers=workers, fingerprint_of=fingerprint_of
        )
    else:
        cache = FeatureCache(features, settings.device, settings.cache_bytes, camera_of, turned=matching.rotations)
        yield from _match_by_threads(work, cache, writer, settings, matching=matching, verification=verification)


def _match_by_workers(
    work: Plan,
    writer: MatchWriter,
    settings: PipelineSettings,
    *,
    matcher: PairMatcher,
    workers: list[PairWorker],
    fingerprint_of: "_Fingerprints",
) -> Iterator[Outcome]:
    written = Written(writer)
    rows = ROWS_OF_CACHE * settings.cache_bytes / len(workers) // max(1, fingerprint_of.largest(work.names[:10]))
    order = order_in_blocks(work, max(1, int(rows)))
    task_pairs = max(1, min(TASK_PAIRS, len(order) // (4 * len(workers))))
    with Crew(workers, matcher, matcher, threads=0) as crew:

        def took(waiting: int) -> Iterator[Outcome]:
            for pairs, found in crew.done(waiting):
                if isinstance(found, WorkerDiedError):
                    reason = f"the process that matched them died ({found}); give a smaller --cache, or fewer --threads"
                    written.add(Outcome(pairs[0], failure=reason))
                    continue
                for pair, one in zip(pairs, found, strict=True):
                    written.take(pair, one)
            yield from written.reported()

        task: list[Pair] = []
        for index in order:
            pair = work.names[work.pairs[index, 0]], work.names[work.pairs[index, 1]]
            if writer.started and (told := _told_before(writer, pair, fingerprint_of, update=settings.update)):
                written.add(told)
                yield from written.reported()
                continue
            task.append(pair)
            if len(task) == task_pairs:
                crew.begin(task)
                task = []
                yield from took(BATCHES_IN_FLIGHT * crew.size)
        if task:
            crew.begin(task)
        while crew.waiting:
            yield from took(crew.waiting - 1)
        yield from written.reported(now=True)


def _told_before(writer: MatchWriter, pair: Pair, fingerprint_of: "_Fingerprints", *, update: bool) -> Outcome | None:
    """What can be said of a pair without matching it: it's there, or its features aren't."""
    first, second = fingerprint_of(pair[0]), fingerprint_of(pair[1])
    if isinstance(first, str) or isinstance(second, str):
        return Outcome(pair, failure=_reasons(first, second))
    return Outcome(pair, skipped=True) if is_done(writer, pair, (first, second), update) else None


class _Fingerprints:
    """The fingerprints of images by their names, or why they can't be read; each found once."""

    def __init__(self, features: FeatureReader, *, turned: bool) -> None:
        self._images = ImageCache(features, torch.device("cpu"), 0, lambda name, size: None, turned=turned)
        self._known: dict[str, int | str] = {}

    def __call__(self, name: str) -> int | str:
        if name not in self._known:
            image = self._images.get(name)
            self._known[name] = image if isinstance(image, str) else image.fingerprint
        return self._known[name]

    def largest(self, names: Sequence[str]) -> int:
        """Bytes of the largest of some images."""
        return max(map(size_of, map(self._images.get, names)), default=0)


def _match_by_threads(
    work: Plan,
    cache: FeatureCache,
    writer: MatchWriter,
    settings: PipelineSettings,
    *,
    matching: MatchingSettings,
    verification: VerificationSettings | None,
) -> Iterator[Outcome]:
    at_once = max(1, min(settings.threads, len(work.pairs)))
    share = max(1, settings.threads // at_once)  # threads for one pair: more than one where pairs are few
    written = Written(writer)
    running: deque[tuple[Batch, Future[list[StoredMatches | ImageError]]]] = deque()
    gathering = _Gathering(settings.batch_values // (4 if matching.rotations else 1))
    with ThreadPoolExecutor(at_once, "match", initializer=torch.set_num_threads, initargs=(share,)) as pool:

        def start(batch: Batch) -> None:
            if batch:
                running.append((batch, pool.submit(_match, batch, matching, verification)))

        try:
            for pair, image0, image1 in cache.walk(work):
                if isinstance(image0, str) or isinstance(image1, str):
                    written.add(Outcome(pair, failure=_reasons(image0, image1)))
                elif is_done(writer, pair, (image0.fingerprint, image1.fingerprint), settings.update):
                    written.add(Outcome(pair, skipped=True))
                else:
                    start(gathering.add(image0, image1))
                while len(running) >= BATCHES_IN_FLIGHT * at_once:
                    _write_batch(written, *running.popleft())
                yield from written.reported()
            start(gathering.batch)
            while running:
                _write_batch(written, *running.popleft())
                yield from written.reported()
            yield from written.reported(now=True)
        finally:
            for _, future in running:
                future.cancel()


def _reasons(*found: object) -> str:
    """Why the images of a pair can't be matched; what `NAME: REASON` says of both is said once, without names."""
    told = [one for one in found if isinstance(one, str)]
    reasons = {one.partition(": ")[2] or one for one in told}
    return reasons.pop() if len(set(told)) > len(reasons) else "; ".join(dict.fromkeys(told))


def _match(
    batch: Batch, matching: MatchingSettings, verification: VerificationSettings | None
) -> list[StoredMatches | ImageError]:
    """The matches of each pair, or why there are none."""
    if len(batch) > 1:
        return match_together(batch, matching, verification)
    try:
        return [match_images(*batch[0], matching, verification)]
    except ImageError as error:
        return [error]


def _write_batch(written: Written, batch: Batch, future: Future[list[StoredMatches | ImageError]]) -> None:
    """Write the matches of pairs as soon as they are there."""
    for (image0, image1), found in zip(batch, future.result(), strict=True):
        fingerprints = image0.fingerprint, image1.fingerprint
        one = Matched(None, failure=str(found)) if isinstance(found, ImageError) else Matched(found, fingerprints)
        written.take((image0.name, image1.name), one)


class _Gathering:
    """Pairs that wait until there are enough to be matched together."""

    def __init__(self, room: int) -> None:
        self.batch: Batch = []
        self._room = room  # similarities, padding included
        self._rows = self._columns = 0

    def add(self, image0: MatchableImage, image1: MatchableImage) -> Batch:
        """Add a pair. Returns those that were there, to be matched now, if it doesn't fit beside them; else none."""
        rows, columns = len(image0.keypoints), len(image1.keypoints)
        most_rows, most_columns = max(self._rows, rows), max(self._columns, columns)
        if (len(self.batch) + 1) * most_rows * most_columns <= self._room and len(self.batch) < COMMIT_PAIRS:
            self.batch.append((image0, image1))
            self._rows, self._columns = most_rows, most_columns
            return []
        full, self.batch = self.batch, [(image0, image1)]
        self._rows, self._columns = rows, columns
        return full
