"""In what order pairs are matched, and which images are in memory meanwhile: each is read a few times only.

Pairs are taken in blocks. The images of a block's rows stay in memory, the others stream past, as in a blocked matrix
product: of n images of which m fit into the memory given, each is read about 1 + n / 2m times for all pairs of them,
and once where all fit. No result depends on the order.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch

from sekd_cli.config import DEFAULT_MAX_PIXELS
from sekd_cli.errors import ImageError, InputFileError
from sekd_cli.feature_file import FeatureReader
from sekd_cli.pair_matching import MatchableImage, matchable_image
from sekd_cli.pairs import Pair
from sekd_cli.seen_pixels import SeenPhotograph, SeenPixels
from sekd_cli.stored_features import StoredFeatures
from sekd_cli.verification import Camera

CameraOf = Callable[[str, StoredFeatures], Camera | None]
"""The camera of an image by its name and features. It may raise ImageError."""


class Plan(NamedTuple):
    """What is to be matched: pairs of images by number, each pair once, and no image with itself."""

    names: list[str]
    pairs: np.ndarray  # (P, 2) int32, numbers of `names`, as given
    repeated: int  # pairs left out: they came up before, either way round
    with_itself: int  # pairs left out: an image with itself


def plan(pairs: Iterable[Pair], own_name: Callable[[str], str] = str) -> Plan:
    """Number the images in the order in which they come up; leave out what needs no matching.

    own_name: of what may be spelled otherwise, the name to use.
    """
    spelled: dict[str, int] = {}
    given = np.array([spelled.setdefault(name, len(spelled)) for pair in pairs for name in pair], dtype=np.int32)
    numbers: dict[str, int] = {}
    number_of = np.array([numbers.setdefault(own_name(name), len(numbers)) for name in spelled], dtype=np.int32)
    given = number_of[given].reshape(-1, 2)
    different = given[given[:, 0] != given[:, 1]]
    keys = different.min(axis=1).astype(np.int64) * len(numbers) + different.max(axis=1)
    first = np.sort(np.unique(keys, return_index=True)[1])
    return Plan(list(numbers), different[first], len(different) - len(first), len(given) - len(different))


def order_in_blocks(work: Plan, rows: int) -> np.ndarray:
    """Numbers of pairs, block by block of so many images that stay, each block's others one after the other."""
    row, column = work.pairs.min(axis=1), work.pairs.max(axis=1)
    _, rank = np.unique(row, return_inverse=True)
    return np.lexsort((row, column, rank // rows))


Key = TypeVar("Key", bound=Hashable)
Kept = TypeVar("Kept", bound=MatchableImage | SeenPixels | str)


class Recent(Generic[Key, Kept]):
    """What was used last, in bounded memory."""

    def __init__(self, load: Callable[[Key], Kept], room: int) -> None:
        """room: bytes; one is kept in any case."""
        self._load = load
        self._room = room
        self._kept: OrderedDict[Key, Kept] = OrderedDict()
        self._size = 0

    def get(self, key: Key) -> Kept:
        """One of them; it is kept until others need its room."""
        found = self._kept.get(key)
        if found is None:
            found = self._kept[key] = self._load(key)
            self._size += size_of(found)
        self._kept.move_to_end(key)
        while self._size > self._room and len(self._kept) > 1:
            self._size -= size_of(self._kept.popitem(last=False)[1])
        return found

    def take(self, key: Key) -> Kept:
        """One of them; the caller keeps it from now on, and it isn't kept here."""
        found = self._kept.pop(key, None)
        if found is None:
            return self._load(key)
        self._size -= size_of(found)
        return found


def size_of(kept: MatchableImage | SeenPixels | str) -> int:
    """Bytes in memory; none for a reason why there is no image."""
    return 0 if isinstance(kept, str) else kept.size


Load = Callable[[str], MatchableImage | str]
"""An image by its name, or why there is none."""


class Loader:
    """Reads images from a feature file, and what else matching needs of them."""

    def __init__(
        self,
        features: FeatureReader,
        device: torch.device,
        camera_of: CameraOf = lambda name, features: None,
        *,
        turned: bool = False,
        folder: Path | None = None,
        room: int = 0,
    ) -> None:
        """turned: read descriptors at other turns too. folder: of the photographs, whose pixels are read when they are
        asked for, and kept in `room` bytes.
        """  # noqa: D205 - one sentence
        self._features = features
        self._device = device
        self._camera_of = camera_of
        self._turned = turned
        self._folder = folder
        self._photographs = Recent(SeenPhotograph.read, room)
        self._unreadable: dict[SeenPhotograph, str] = {}  # photographs, and why: none is tried again
        self._reading = threading.Lock()

    def __call__(self, name: str) -> MatchableImage | str:
        """An image, or why there is none."""
        try:
            stored = self._features.read(name, turned=self._turned)
            camera = self._camera_of(name, stored)
            pixels = None if self._folder is None else self._pixels(self._folder, name, stored)
        except (ImageError, InputFileError) as error:
            return str(error)
        return matchable_image(name, stored, self._device, camera, pixels)

    def _pixels(self, folder: Path, name: str, features: StoredFeatures) -> Callable[[], SeenPixels]:
        most = max(DEFAULT_MAX_PIXELS, math.prod(features.stated_size or ()))  # it was extracted
        of_file = self._features.file_size(name)
        photograph = SeenPhotograph.of(folder / name, features, max_pixels=most, file_size=of_file)

        def read() -> SeenPixels:
            with self._reading:
                if photograph in self._unreadable:
                    raise ImageError(self._unreadable[photograph])
                try:
                    return self._photographs.get(photograph)
                except ImageError as error:
                    self._unreadable[photograph] = str(error)
                    raise

        return read


class FeatureCache:
    """Features in bounded memory: most of it for the rows of the block at hand, the rest for what was used last."""

    def __init__(self, load: Load, room: int) -> None:
        """See `Recent`."""
        passing = room // 8  # for images that pass; each is needed once a block
        self._row_room = room - passing
        self._passing = Recent(load, passing)

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
                held[number] = self._passing.take(work.names[number])
                size += size_of(held[number])
                end = int(np.searchsorted(sorted_rows, number, side="right"))
            block = order[start:end]
            for index in block[np.lexsort((row[block], column[block]))]:
                first, second = work.pairs[index].tolist()
                images = [held.get(number) or self._passing.get(work.names[number]) for number in (first, second)]
                yield (work.names[first], work.names[second]), images[0], images[1]
            start = end
