"""Which images look alike (`image_likeness`): those of a feature file, each with its nearest.

Processes of their own bring images into words, and compare some with all; where there are none, a thread does.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sekd_cli.device import give_back_memory
from sekd_cli.errors import DeviceError, InputFileError
from sekd_cli.feature_file import FeatureReader
from sekd_cli.image_likeness import Directions, Likeness, directions, learn_codebook
from sekd_cli.pair_matching import comparable
from sekd_cli.workers import Crew, Item, Reply, WorkerDiedError, workers

KEYPOINTS = 400  # of an image, its best: with more, no more of its neighbours are found
SAMPLED_IMAGES, SAMPLED_DESCRIPTORS = 400, 60_000  # what the codebook is learned from: evenly spread, each image's best
DESCRIBED_AT_ONCE, COMPARED_AT_ONCE = 16, 512  # images
COMPARED_VALUES = 1 << 25  # of likeness at once, 128 MB, of which a process makes one copy
GIVE_BACK_EVERY = 4  # batches: what is kept of each image pins the memory that all its descriptors took


def nearest(
    features: FeatureReader,
    names: Sequence[str],
    count: int,
    unreadable: dict[str, str],
    done: Callable[[int], object] = lambda images: None,
    *,
    queries: Sequence[str] = (),
    processes: int = 0,
) -> Iterator[tuple[str, str]]:
    """Pairs of each image with the `count` that look most like it, each pair once, in the order of `names`.

    With queries, which are no `names`, pairs of each of these, first, with the `count` of `names` that look most like
    it. Reads every image's features twice at most; depends on nothing but these. Of equally alike ones the first named.
    Images whose features can't be read are left out; why is put into `unreadable`, by name. `done` is told of so many
    more images when they are read, and again of those that can be read when they are compared. processes: that do it,
    from two on; else a thread does. Raises DeviceError if one runs out of memory while it compares.
    """
    everything = [*queries, *names]
    describe = _Describer(features.path, learn_codebook(_sample(features, everything)))
    described: dict[str, Directions] = {}
    for batch, found in _by_processes(describe, everything, DESCRIBED_AT_ONCE, processes):
        if isinstance(found, WorkerDiedError):  # of a batch of one
            unreadable[batch[0]] = f"{batch[0]}: the process that read it died ({found})"
        else:
            unreadable.update((name, one) for name, one in zip(batch, found, strict=True) if isinstance(one, str))
            described.update((name, one) for name, one in zip(batch, found, strict=True) if not isinstance(one, str))
        done(len(batch))
    readable = [name for name in everything if name in described]
    asked = sum(name in described for name in queries)
    if queries and not asked:
        return
    compare = _Comparer(Likeness([described.pop(name) for name in readable]), count, asked)
    pairs: set[tuple[int, int]] = set()
    at_once = max(1, min(COMPARED_AT_ONCE, COMPARED_VALUES // max(1, len(readable))))
    for images, near in _by_processes(compare, range(asked or len(readable)), at_once, processes):
        if isinstance(near, WorkerDiedError):
            raise DeviceError(f"too little memory to compare {len(readable):,} images ({near}); give --threads 1")
        for image, others in zip(images, near, strict=True):
            pairs.update((min(image, other), max(image, other)) for other in others)
        done(len(images))
    for first, second in sorted(pairs):
        yield readable[first], readable[second]


def _by_processes(
    work: Callable[[Sequence[Item]], list[Reply]], items: Sequence[Item], at_once: int, processes: int
) -> Iterator[tuple[Sequence[Item], list[Reply] | WorkerDiedError]]:
    """Have so many items at once worked on; yields them with their replies, in no particular order."""
    batches = (items[start : start + at_once] for start in range(0, len(items), at_once))
    processes = min(processes, -(-len(items) // at_once))
    with workers(processes if processes > 1 else 0, work) as running, Crew(running, work, work, threads=1) as crew:
        for batch in batches:
            crew.begin(batch)
            yield from crew.done(2 * crew.size)
        yield from crew.done(0)


class _Describer:
    """Brings images into the words of a codebook: what a process does."""

    def __init__(self, path: Path, codebook: Tensor) -> None:
        """path: of the feature file, opened by each process for itself."""
        self._path, self._codebook = path, codebook
        self._features: FeatureReader | None = None
        self._batches = 0

    def __call__(self, names: Sequence[str]) -> list[Directions | str]:
        """The directions of each image, or why they can't be read."""
        self._features = self._features or FeatureReader(self._path)
        self._batches += 1
        if self._batches % GIVE_BACK_EVERY == 0:
            give_back_memory()
        found: list[Directions | str] = []
        for name in names:
            try:
                found.append(directions(_descriptors(self._features, name, KEYPOINTS), self._codebook))
            except InputFileError as error:
                found.append(str(error))
        return found


class _Comparer:
    """Finds the neighbours of images: what a process does."""

    def __init__(self, likeness: Likeness, count: int, asked: int) -> None:
        """See `neighbours`."""
        self._likeness, self._count, self._asked = likeness, count, asked

    def __call__(self, images: Sequence[int]) -> list[list[int]]:
        """Those of each of some images in a row."""
        return neighbours(self._likeness.rows(images[0], images[-1] + 1), images[0], self._count, self._asked)


def neighbours(alike: np.ndarray, first: int, count: int, asked: int = 0) -> list[list[int]]:
    """The `count` images that are most like each of some, the most alike first, of equal ones the first.

    alike: how alike image `first` and those after it are to all, (B, I); spoiled. asked: the first so many images are
    no neighbours, of which these are some; 0: all are but an image of its own.
    """
    own = np.arange(len(alike))
    alike[own, first + own] = -np.inf
    alike[:, :asked] = -np.inf
    most = min(count, alike.shape[1] - (asked or 1))
    found = []
    for row, least in zip(alike, np.partition(alike, -most, axis=1)[:, -most], strict=True):
        near = np.flatnonzero(row >= least)  # these alone are sorted
        found.append(near[np.argsort(-row[near], kind="stable")[:most]].tolist())
    return found


def _sample(features: FeatureReader, names: Sequence[str]) -> Tensor:
    """Descriptors (M, D) to learn the codebook from; images that can't be read have none."""
    chosen = names[:: max(1, len(names) // SAMPLED_IMAGES)]
    most = min(KEYPOINTS, SAMPLED_DESCRIPTORS // max(1, len(chosen)))
    sampled = []
    for name in chosen:
        with suppress(InputFileError):  # which is told when all are read
            sampled.append(_descriptors(features, name, most))
    width = max((part.shape[1] for part in sampled), default=0)
    return torch.cat([torch.zeros(0, width), *(part for part in sampled if part.shape[1] == width)])


def _descriptors(features: FeatureReader, name: str, most: int) -> Tensor:
    """The `most` best (N, D), as in matching. Raises InputFileError if they can't be read."""
    found = features.read(name)
    best = np.argsort(-found.scores, kind="stable")[:most]  # other tools' need not be in order
    return comparable(torch.from_numpy(found.descriptors[best]))
