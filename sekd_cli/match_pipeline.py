"""Many pairs of a feature file to one match file: each image read a few times only, pairs matched in parallel.

On a CPU several processes match, each of which reads what it needs; elsewhere threads do. One thread writes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sekd_cli.config import MatchingSettings, VerificationSettings
from sekd_cli.device import give_back_memory
from sekd_cli.errors import ImageError
from sekd_cli.feature_cache import CameraOf, FeatureCache, Loader, Plan, Recent, order_in_blocks, size_of
from sekd_cli.feature_file import FeatureReader
from sekd_cli.match_file import MatchWriter
from sekd_cli.match_writing import COMMIT_PAIRS, Matched, Outcome, Written, is_done
from sekd_cli.pair_matching import MatchableImage, match_images, match_together
from sekd_cli.pairs import Pair
from sekd_cli.stored_matches import StoredMatches
from sekd_cli.workers import Crew, Worker, WorkerDiedError, take_interrupt

BATCHES_IN_FLIGHT = 4  # for each thread or process: enough that none waits while features are read or matches written
TASK_PAIRS, REFINED_PAIRS = 32, 8  # that a process takes at a time, fewer where there are few: 0.2 s
GIVE_BACK_EVERY = 16  # tasks: images that others took the place of lie about as free memory
CPU = torch.device("cpu")
ROWS_OF_CACHE = 0.5  # of a process's memory for features: those of the rows of a block


Batch = Sequence[tuple[MatchableImage, MatchableImage]]
"""Pairs that are matched together."""


@dataclass(frozen=True, kw_only=True)
class PipelineSettings:
    """What decides speed and memory, and no number in the file."""

    device: torch.device
    threads: int = 1  # pairs matched at once
    update: bool = False  # match pairs again whose features changed since
    batch_values: int = 0  # similarities of pairs that are matched together, padding included; 0: one pair at a time


class PairMatcher:
    """How pairs are matched; called with their names it is what a worker process does."""

    def __init__(
        self,
        path: Path,
        cache_bytes: int,
        matching: MatchingSettings,
        verification: VerificationSettings | None = None,
        *,
        camera_of: CameraOf = lambda name, features: None,
        folder: Path | None = None,
    ) -> None:
        """path: of the feature file, opened by each process for itself. cache_bytes: of features in its memory.

        folder: of the photographs, to align verified matches by their pixels, which take half of these bytes.
        """
        self.cache_bytes, self.matching = cache_bytes if folder is None else cache_bytes // 2, matching
        self._path, self._verification, self._camera_of, self.folder = path, verification, camera_of, folder
        self._images: Recent[str, MatchableImage | str] | None = None
        self._tasks = 0

    def __call__(self, pairs: Sequence[Pair]) -> list[Matched]:
        """The matches of each."""
        if self._images is None:
            self._images = Recent(self.loader(FeatureReader(self._path)), self.cache_bytes)
        self._tasks += 1
        if self._tasks % GIVE_BACK_EVERY == 0:
            give_back_memory()
        matched = []
        for pair in pairs:
            image0, image1 = map(self._images.get, pair)
            if isinstance(image0, str) or isinstance(image1, str):
                matched.append(Matched(pair, None, failure=_reasons(pair, image0, image1)))
            else:
                matched += self.batch([(image0, image1)])
        return matched

    def loader(self, features: FeatureReader, device: torch.device = CPU) -> Loader:
        """What reads the images that are matched."""
        turned, folder, room = self.matching.rotations, self.folder, self.cache_bytes
        return Loader(features, device, self._camera_of, turned=turned, folder=folder, room=room)

    def batch(self, images: Batch) -> list[Matched]:
        """The matches of each pair, found together where there are several."""
        found: list[StoredMatches | ImageError]
        if len(images) > 1:
            found = match_together(images, self.matching, self._verification)
        else:
            try:
                found = [match_images(*images[0], self.matching, self._verification)]
            except ImageError as error:
                found = [error]
        return [_matched(*both, one) for both, one in zip(images, found, strict=True)]


def _matched(image0: MatchableImage, image1: MatchableImage, found: StoredMatches | ImageError) -> Matched:
    pair = image0.name, image1.name
    if isinstance(found, ImageError):
        return Matched(pair, None, failure=str(found))
    return Matched(pair, found, (image0.fingerprint, image1.fingerprint))


PairWorker = Worker[Sequence[Pair], list[Matched]]


def match_all(
    work: Plan,
    features: FeatureReader,
    writer: MatchWriter,
    settings: PipelineSettings,
    *,
    matcher: PairMatcher,
    workers: list[PairWorker] | None = None,
) -> Iterator[Outcome]:
    """Match every pair into the file; yields each outcome once its matches are durable, in no particular order.

    workers: processes that do so with this matcher; in place of one that dies another is put. Raises OutputError if the
    file can't be written or holds matches of other features, DeviceError if the device runs out of memory.
    """
    if workers:
        yield from _match_by_workers(work, features, writer, matcher=matcher, workers=workers, update=settings.update)
    else:
        yield from _match_by_threads(work, features, writer, settings, matcher)


def _match_by_workers(
    work: Plan,
    features: FeatureReader,
    writer: MatchWriter,
    *,
    matcher: PairMatcher,
    workers: list[PairWorker],
    update: bool,
) -> Iterator[Outcome]:
    written, fingerprint_of = Written(writer), _Fingerprints(features)
    largest = max(map(size_of, map(matcher.loader(features), work.names[:10])), default=0)
    rows = ROWS_OF_CACHE * matcher.cache_bytes // max(1, largest)
    order = order_in_blocks(work, max(1, int(rows)))
    most = REFINED_PAIRS if matcher.folder is not None else TASK_PAIRS
    task_pairs = max(1, min(most, len(order) // (4 * len(workers))))
    task: list[Pair] = []
    with Crew(workers, matcher, matcher, threads=0) as crew:
        for index in order:
            take_interrupt()
            pair = work.names[work.pairs[index, 0]], work.names[work.pairs[index, 1]]
            if writer.started and (told := _told_before(writer, pair, fingerprint_of, update=update)):
                written.add(told)
            else:
                task.append(pair)
            if len(task) == task_pairs:
                crew.begin(task)
                task = []
            yield from _taken(crew, written, BATCHES_IN_FLIGHT * crew.size)
        if task:
            crew.begin(task)
        yield from _taken(crew, written, 0)
        yield from written.reported(now=True)


def _taken(crew: Crew[Any, Matched], written: Written, waiting: int) -> Iterator[Outcome]:
    """Write what is matched, until no more than `waiting` batches are left; yields what is durable."""
    for items, found in crew.done(waiting):
        if isinstance(found, WorkerDiedError):  # the only item is a pair of names: images aren't given to processes
            reason = f"the process that matched them died ({found}); give a smaller --cache, or fewer --threads"
            written.add(Outcome(items[0], failure=reason))
        else:
            for one in found:
                written.take(one)
        yield from written.reported()
    yield from written.reported()


def _told_before(writer: MatchWriter, pair: Pair, fingerprint_of: "_Fingerprints", *, update: bool) -> Outcome | None:
    """What can be said of a pair without matching it: it's there, or its features aren't."""
    first, second = fingerprint_of(pair[0]), fingerprint_of(pair[1])
    if isinstance(first, str) or isinstance(second, str):
        return Outcome(pair, failure=_reasons(pair, first, second))
    return Outcome(pair, skipped=True) if is_done(writer, pair, (first, second), update) else None


class _Fingerprints:
    """The fingerprints of images by their names, or why they can't be read; each found once."""

    def __init__(self, features: FeatureReader) -> None:
        self._load = Loader(features, CPU)
        self._known: dict[str, int | str] = {}

    def __call__(self, name: str) -> int | str:
        if name not in self._known:
            image = self._load(name)
            self._known[name] = image if isinstance(image, str) else image.fingerprint
        return self._known[name]


def _match_by_threads(
    work: Plan, features: FeatureReader, writer: MatchWriter, settings: PipelineSettings, matcher: PairMatcher
) -> Iterator[Outcome]:
    turned = matcher.matching.rotations
    cache = FeatureCache(matcher.loader(features, settings.device), matcher.cache_bytes)
    gathering = _Gathering(settings.batch_values // (4 if turned else 1))
    written, fingerprint_of = Written(writer), _Fingerprints(features)
    at_once = max(1, min(settings.threads, len(work.pairs)))
    share = max(1, settings.threads // at_once)  # threads for one pair: more than one where pairs are few

    def match(batch: Batch) -> list[Matched]:
        torch.set_num_threads(share)
        return matcher.batch(batch)

    with Crew([], match, match, at_once) as crew:
        for pair, image0, image1 in cache.walk(work):
            take_interrupt()
            if isinstance(image0, str) or isinstance(image1, str):
                told = _told_before(writer, pair, fingerprint_of, update=settings.update)  # its camera may be gone
                written.add(told or Outcome(pair, failure=_reasons(pair, image0, image1)))
            elif is_done(writer, pair, (image0.fingerprint, image1.fingerprint), settings.update):
                written.add(Outcome(pair, skipped=True))
            elif full := gathering.add(image0, image1):
                crew.begin(full)
            yield from _taken(crew, written, BATCHES_IN_FLIGHT * crew.size)
        if gathering.batch:
            crew.begin(gathering.batch)
        yield from _taken(crew, written, 0)
        yield from written.reported(now=True)


def _reasons(pair: Pair, *found: object) -> str:
    """Why the images of a pair can't be matched; what `NAME: REASON` says of both is said once, without names."""
    told = {name: one for name, one in zip(pair, found, strict=True) if isinstance(one, str)}
    reasons = {one.removeprefix(f"{name}: ") for name, one in told.items()}
    different = dict.fromkeys(told.values())
    return reasons.pop() if len(different) > len(reasons) else "; ".join(different)


class _Gathering:
    """Pairs that wait until there are enough to be matched together."""

    def __init__(self, room: int) -> None:
        self.batch: list[tuple[MatchableImage, MatchableImage]] = []
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
