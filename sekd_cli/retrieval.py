"""Which images look alike, from their local descriptors alone: aggregated selective match kernels (Tolias, Avrithis and
Jegou, ICCV 2013) with a codebook learned from the same features.

Of each word that an image has, the direction is kept in which its descriptors lie from the word. Two images are as
alike as their directions are in the words that both have; directions far apart count for nothing, rare words for more.
"""  # noqa: D205 - one sentence

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sekd_cli.device import give_back_memory
from sekd_cli.errors import InputFileError
from sekd_cli.feature_file import FeatureReader
from sekd_cli.pair_matching import comparable

KEYPOINTS = 400  # of an image, its best: with more, no more of its neighbours are found
WORDS = 2048  # of the codebook at most
DESCRIPTORS_A_WORD = 40  # at least: a word of few is their mean, from which two views of a point lie opposite
SAMPLED_IMAGES, SAMPLED_DESCRIPTORS = 400, 60_000  # what the codebook is learned from: evenly spread, each image's best
ITERATIONS = 10  # of k-means
LEAST_COSINE = 0.25  # of two directions that count; of unrelated ones in 64 dimensions one in forty has it
SELECTIVITY = 3  # power of the cosine: one good direction is worth more than several fair ones
STEPS = 127  # to a value of 1 in a byte
GIVE_BACK_EVERY = 64  # images: what is kept of each pins the memory that all its descriptors took
COMPARED_AT_ONCE, ASSIGNED_AT_ONCE = 1024, 1024  # images, descriptors


def nearest(
    features: FeatureReader,
    names: Sequence[str],
    count: int,
    unreadable: dict[str, str],
    done: Callable[[int], object] = lambda images: None,
    *,
    queries: Sequence[str] = (),
) -> Iterator[tuple[str, str]]:
    """Pairs of each image with the `count` that look most like it, each pair once, in the order of `names`.

    With queries, which are no `names`, pairs of each of these, first, with the `count` of `names` that look most like
    it. Reads every image's features twice at most; depends on nothing but these. Of equally alike ones the first named.
    Images whose features can't be read are left out; why is put into `unreadable`, by name. `done` is told of so many
    more images when they are read, and again of those that can be read when they are compared.
    """
    everything = [*queries, *names]
    codebook = learn_codebook(_sample(features, everything, unreadable))
    described: dict[str, Directions] = {}
    for index, name in enumerate(everything):
        if index % GIVE_BACK_EVERY == 0:
            give_back_memory()
        found = _descriptors(features, name, KEYPOINTS, unreadable)
        if found is not None:
            described[name] = directions(found, codebook)
        done(1)
    readable = list(described)
    asked = sum(name in described for name in queries)
    if queries and not asked:
        return
    for first, second in nearest_pairs(similarities(list(described.values()), asked), count, done, asked):
        yield readable[first], readable[second]


def learn_codebook(descriptors: Tensor, words: int = WORDS) -> Tensor:
    """Cluster centres of descriptors (M, D) by k-means, (at most `words`, D), from a fixed start."""
    words = min(words, max(1, len(descriptors) // DESCRIPTORS_A_WORD))
    start = torch.randperm(len(descriptors), generator=torch.Generator().manual_seed(0))[:words]
    centres = descriptors[start]
    for _ in range(ITERATIONS):
        own = _word_of(descriptors, centres)
        sums = torch.zeros_like(centres).index_add_(0, own, descriptors)
        sizes = torch.bincount(own, minlength=words)[:, None]
        centres = torch.where(sizes > 0, sums / sizes, centres)
    return centres


class Directions(NamedTuple):
    """An image as its words."""

    words: np.ndarray  # (U,) int64, ascending
    there: np.ndarray  # (U, D) int8, unit vectors in `STEPS`: in which direction from each word its descriptors lie


def directions(descriptors: Tensor, codebook: Tensor) -> Directions:
    """An image's local descriptors (N, D) by the words of a codebook (W, D).

    It has no words if it has no descriptors, or others than the codebook.
    """
    if descriptors.shape[1] != codebook.shape[1]:  # a file put together by hand
        descriptors = codebook[:0]
    descriptors = descriptors[descriptors.any(dim=1)]  # what was no number is zero
    own = _word_of(descriptors, codebook)
    words, which = np.unique(own.numpy(), return_inverse=True)
    sums = codebook.new_zeros((len(words), codebook.shape[1]))
    sums.index_add_(0, torch.from_numpy(which), descriptors - codebook[own])
    return Directions(words, (STEPS * F.normalize(sums, dim=1)).round().to(torch.int8).numpy())


def similarities(images: Sequence[Directions], asked: int = 0) -> Iterator[np.ndarray]:
    """How alike images are to each other: some rows (B, I) after others, each value up to 1.

    asked: only the first so many have rows; 0 for all. To an image without words all are less alike (-1) than to any
    other.
    """
    count, sizes = len(images), [len(image.words) for image in images]
    every_word = np.concatenate([np.zeros(0, np.int64), *(image.words for image in images)])
    order = np.argsort(every_word, kind="stable")
    image_of = np.repeat(np.arange(count), sizes)[order]  # by words, and of each the images that have it, ascending
    there = np.concatenate([image.there for image in images])[order] if count else np.zeros((0, 0), np.int8)
    having = np.bincount(every_word)
    ends = np.cumsum(having)
    rarity = np.log1p(count / np.maximum(having, 1)).astype(np.float32)
    norms = np.sqrt(np.bincount(image_of, np.repeat(rarity, having), minlength=count)).astype(np.float32)
    nothing = norms == 0
    norms[nothing] = 1
    rows = asked or count
    for first in range(0, rows, COMPARED_AT_ONCE):
        last = min(first + COMPARED_AT_ONCE, rows)
        alike = np.zeros((last - first, count), np.float32)
        for end, size, worth in zip(ends.tolist(), having.tolist(), rarity, strict=True):
            images_here = image_of[end - size : end]
            low, high = np.searchsorted(images_here, (first, last))
            if low == high:
                continue
            vectors = torch.from_numpy(there[end - size : end]).float() / STEPS
            cosines = torch.mm(vectors[low:high], vectors.T).numpy().ravel()  # numpy's own threads wait for each other
            close = np.flatnonzero(cosines > LEAST_COSINE)
            pairs = images_here[low + close // size] - first, images_here[close % size]
            alike[pairs] += worth * cosines[close] ** SELECTIVITY
        alike /= norms[first:last, None] * norms
        alike[:, nothing] = -1
        yield alike


def nearest_pairs(
    alike: Iterable[np.ndarray], count: int, done: Callable[[int], object] = lambda images: None, asked: int = 0
) -> Iterator[tuple[int, int]]:
    """Pairs i < j of images where one is among the `count` most similar to the other, sorted.

    alike: `similarities`, rows (B, I) after others; of equal ones the first image counts as nearer. asked: only the
    first so many have rows, and only the others are neighbours. `done` is told how many rows more.
    """
    found: set[tuple[int, int]] = set()
    start = 0
    for rows in alike:
        most = min(count, rows.shape[1] - (asked or 1))
        own = np.arange(len(rows))
        rows[own, start + own] = -np.inf  # an image is not a neighbour of its own
        rows[:, :asked] = -np.inf
        ranked = np.argsort(-rows, axis=1, kind="stable")[:, :most]
        for row, neighbours in enumerate(ranked.tolist(), start):
            found.update((min(row, other), max(row, other)) for other in neighbours)
        start += len(rows)
        done(len(rows))
    yield from sorted(found)


def _word_of(descriptors: Tensor, centres: Tensor) -> Tensor:
    """Index of the nearest centre, (N, D) and (W, D) -> (N,)."""
    halves = (centres**2).sum(dim=1) / 2
    found = torch.empty(len(descriptors), dtype=torch.int64)
    for start in range(0, len(descriptors), ASSIGNED_AT_ONCE):
        part = slice(start, start + ASSIGNED_AT_ONCE)
        found[part] = torch.from_numpy((descriptors[part] @ centres.T - halves).numpy().argmax(axis=1))
    return found


def _sample(features: FeatureReader, names: Sequence[str], unreadable: dict[str, str]) -> Tensor:
    chosen = names[:: max(1, len(names) // SAMPLED_IMAGES)]
    most = min(KEYPOINTS, SAMPLED_DESCRIPTORS // max(1, len(chosen)))
    found = (_descriptors(features, name, most, unreadable) for name in chosen)
    sampled = [part for part in found if part is not None] or [torch.zeros(0, 0)]
    width = max(part.shape[1] for part in sampled)
    return torch.cat([part for part in sampled if part.shape[1] == width])


def _descriptors(features: FeatureReader, name: str, most: int, unreadable: dict[str, str]) -> Tensor | None:
    """(N, D), as in matching, the `most` best; None, and why in `unreadable`, if they can't be read."""
    try:
        found = features.read(name)
    except InputFileError as error:
        unreadable[name] = str(error)
        return None
    best = np.argsort(-found.scores, kind="stable")[:most]  # other tools' need not be in order
    return comparable(torch.from_numpy(found.descriptors[best]))
