"""Many pairs of a feature file to one match file: each image read a few times only, pairs matched in parallel.

Pairs are taken in blocks. The images of a block's rows stay in memory, the others stream past, as in a blocked matrix
product: of n images of which m fit into the memory given, each is read about 1 + n / 2m times for all pairs of them,
and once where all fit. No result depends on the order.
"""

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from sekd_cli.config import MatchingSettings, VerificationSettings
from sekd_cli.errors import ImageError, InputFileError
from sekd_cli.feature_file import FeatureReader
from sekd_cli.match_file import ChangedFeaturesError, MatchWriter
from sekd_cli.pair_matching import MatchableImage, match_images, match_together, matchable_image
from sekd_cli.pairs import Pair
from sekd_cli.stored_matches import StoredMatches
from sekd_cli.verification import Camera

BATCHES_IN_FLIGHT = 4  # for each thread: enough that none waits while features are read or matches written
COMMIT_PAIRS, COMMIT_SECONDS = 64, 1.0  # matches are made durable, and reported, after so many or so long

CameraOf = Callable[[str, tuple[int, int]], Camera | None]
"""The camera of an image by name and (width, height). It may raise ImageError."""


Batch = list[tuple[MatchableImage, MatchableImage]]
"""Pairs that are matched together."""


class Plan(NamedTuple):
    """What is to be matched: pairs of images by number, each pair once, and no image with itself."""

    names: list[str]
    pairs: np.ndarray  # (P, 2) int32, numbers of `names`, as given
    repeated: int  # pairs left out: they came up before, either way round
    with_itself: int  # pairs left out: an image with itself


class Outcome(NamedTuple):
    """What became of a pair: its matches are in the file (now, or before), or why they are not."""

    pair: Pair
    matches: int = 0
    skipped: bool = False  # was there before
    failure: str | None = None


@dataclass(frozen=True, kw_only=True)
class PipelineSettings:
    """What decides speed and memory, and no number in the file."""

    device: torch.device
    threads: int = 1  # pairs matched at once
    cache_bytes: int = 1 << 30  # of features in memory
    update: bool = False  # match pairs again whose features changed since
    batch_values: int = 0  # similarities of pairs that are matched together, padding included; 0: one pair at a time


def plan(pairs: Iterable[Pair]) -> Plan:
    """Number the images in the order in which they come up; leave out what needs no matching."""
    numbers: dict[str, int] = {}
    given = np.array([numbers.setdefault(name, len(numbers)) for pair in pairs for name in pair], dtype=np.int32)
    given = given.reshape(-1, 2)
    different = given[given[:, 0] != given[:, 1]]
    keys = different.min(axis=1).astype(np.int64) * len(numbers) + different.max(axis=1)
    first = np.sort(np.unique(keys, return_index=True)[1])
    return Plan(list(numbers), different[first], len(different) - len(first), len(given) - len(different))


def match_all(
    work: Plan,
    features: FeatureReader,
    writer: MatchWriter,
    settings: PipelineSettings,
    *,
    matching: MatchingSettings,
    verification: VerificationSettings | None = None,
    camera_of: CameraOf = lambda name, size: None,
) -> Iterator[Outcome]:
    """Match every pair into the file; yields each outcome once its matches are durable, in no particular order.

    Raises OutputError if the file can't be written or holds matches of other features, DeviceError if the device runs
    out of memory.
    """
    cache = FeatureCache(features, settings, camera_of, turned=matching.rotations)
    at_once = max(1, min(settings.threads, len(work.pairs)))
    share = max(1, settings.threads // at_once)  # threads for one pair: more than one where pairs are few
    written = _Written(writer)
    running: deque[tuple[Batch, Future[list[StoredMatches | ImageError]]]] = deque()
    gathering = _Gathering(settings.batch_values // (4 if matching.rotations else 1))
    with ThreadPoolExecutor(at_once, "match", initializer=torch.set_num_threads, initargs=(share,)) as pool:

        def start(batch: Batch) -> None:
            if batch:
                running.append((batch, pool.submit(_match, batch, matching, verification)))

        try:
            for pair, image0, image1 in cache.walk(work):
                if isinstance(image0, str) or isinstance(image1, str):
                    reasons = [reason for reason in (image0, image1) if isinstance(reason, str)]
                    written.add(Outcome(pair, failure="; ".join(reasons)))
                elif _is_done(writer, pair, (image0.fingerprint, image1.fingerprint), settings.update):
                    written.add(Outcome(pair, skipped=True))
                else:
                    start(gathering.add(image0, image1))
                while len(running) >= BATCHES_IN_FLIGHT * at_once:
                    written.take(*running.popleft())
                yield from written.reported()
            start(gathering.batch)
            while running:
                written.take(*running.popleft())
                yield from written.reported()
            yield from written.reported(now=True)
        finally:
            for _, future in running:
                future.cancel()


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


def _is_done(writer: MatchWriter, pair: Pair, fingerprints: tuple[int, int], update: bool) -> bool:
    try:
        return writer.is_complete(pair, fingerprints)
    except ChangedFeaturesError:
        if not update:
            raise
    return False


class _Written:
    """Pairs on their way into the file, reported when they are durable."""

    def __init__(self, writer: MatchWriter) -> None:
        self._writer = writer
        self._outcomes: list[Outcome] = []
        self._committed = time.monotonic()

    def add(self, outcome: Outcome) -> None:
        """Report this, in turn."""
        self._outcomes.append(outcome)

    def take(self, batch: Batch, future: Future[list[StoredMatches | ImageError]]) -> None:
        """Write the matches of pairs as soon as they are there."""
        for (image0, image1), matches in zip(batch, future.result(), strict=True):
            pair = image0.name, image1.name
            if isinstance(matches, ImageError):
                self.add(Outcome(pair, failure=str(matches)))
                continue
            self._writer.write(pair, matches, (image0.fingerprint, image1.fingerprint))
            self.add(Outcome(pair, int((matches.matches0 >= 0).sum())))

    def reported(self, *, now: bool = False) -> Iterator[Outcome]:
        """Outcomes that are durable: none until it is time to commit, or `now`."""
        if now or len(self._outcomes) >= COMMIT_PAIRS or time.monotonic() > self._committed + COMMIT_SECONDS:
            self._writer.commit()
            self._committed = time.monotonic()
            outcomes, self._outcomes = self._outcomes, []
            yield from outcomes


class FeatureCache:
    """Features in bounded memory: most of it for the rows of the block at hand, the rest for what was used last."""

    def __init__(
        self, features: FeatureReader, settings: PipelineSettings, camera_of: CameraOf, *, turned: bool = False
    ) -> None:
        """turned: read descriptors at other turns too."""
        self._features = features
        self._device = settings.device
        self._room = settings.cache_bytes // 8  # for images that pass; each is needed once a block
        self._row_room = settings.cache_bytes - self._room
        self._camera_of = camera_of
        self._turned = turned
        self._passing: OrderedDict[str, MatchableImage | str] = OrderedDict()
        self._passing_size = 0
        self.reads = 0  # of images, so far

    def walk(self, work: Plan) -> Iterator[tuple[Pair, MatchableImage | str, MatchableImage | str]]:
        """Every pair with its images, or why there is none, in an order that needs few reads."""
        row, column = work.pairs.min(axis=1), work.pairs.max(axis=1)
        order = np.lexsort((column, row))
        sorted_rows = row[order]
        start = 0
        while start < len(order):
            held: dict[int, MatchableImage | str] = {}
            size, end = 0, start
            while end < len(order) and (not held or size < self._row_room):
                number = int(sorted_rows[end])
                held[number] = self._take(work.names[number])
                size += _size(held[number])
                end = int(np.searchsorted(sorted_rows, number, side="right"))
            block = order[start:end]
            for index in block[np.lexsort((row[block], column[block]))]:
                first, second = work.pairs[index].tolist()
                images = [held.get(number) or self._pass(work.names[number]) for number in (first, second)]
                yield (work.names[first], work.names[second]), images[0], images[1]
            start = end

    def _take(self, name: str) -> MatchableImage | str:
        """An image for a row: out of those that passed, if it is one of them."""
        image = self._passing.pop(name, None)
        if image is None:
            return self._load(name)
        self._passing_size -= _size(image)
        return image

    def _pass(self, name: str) -> MatchableImage | str:
        """An image that is used now, and kept until others need its room."""
        image = self._passing.get(name)
        if image is None:
            image = self._passing[name] = self._load(name)
            self._passing_size += _size(image)
        self._passing.move_to_end(name)
        while self._passing_size > self._room and len(self._passing) > 1:
            self._passing_size -= _size(self._passing.popitem(last=False)[1])
        return image

    def _load(self, name: str) -> MatchableImage | str:
        self.reads += 1
        try:
            stored = self._features.read(name, turned=self._turned)
            camera = self._camera_of(name, stored.image_size)
        except (ImageError, InputFileError) as error:
            return str(error)
        return matchable_image(name, stored, self._device, camera)


def _size(image: MatchableImage | str) -> int:
    return 0 if isinstance(image, str) else image.size
