"""How alike images are by their local descriptors: aggregated selective match kernels (Tolias, Avrithis and Jegou, ICCV
2013) with a codebook learned from the same features.

Of each word that an image has, the direction is kept in which its descriptors lie from the word. Two images are as
alike as their directions are in the words that both have; directions far apart count for nothing, rare words for more.
"""  # noqa: D205 - one sentence

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

WORDS = 2048  # of the codebook at most
DESCRIPTORS_A_WORD = 40  # at least: a word of few is their mean, from which two views of a point lie opposite
ITERATIONS = 10  # of k-means
LEAST_COSINE = 0.25  # of two directions that count; of unrelated ones in 64 dimensions one in forty has it
STEPS = 127  # to a value of 1 in a byte
ASSIGNED_AT_ONCE = 1024  # descriptors


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


def _word_of(descriptors: Tensor, centres: Tensor) -> Tensor:
    """Index of the nearest centre, (N, D) and (W, D) -> (N,)."""
    halves = (centres**2).sum(dim=1) / 2
    found = torch.empty(len(descriptors), dtype=torch.int64)
    for start in range(0, len(descriptors), ASSIGNED_AT_ONCE):
        part = slice(start, start + ASSIGNED_AT_ONCE)
        found[part] = torch.from_numpy(torch.addmm(-halves, descriptors[part], centres.T).numpy().argmax(axis=1))
    return found


class Likeness:
    """What is needed to tell how alike any two of some images are."""

    def __init__(self, images: Sequence[Directions]) -> None:
        """All their directions are kept by words."""
        self.count = len(images)
        every_word = np.concatenate([np.zeros(0, np.int64), *(image.words for image in images)])
        order = np.argsort(every_word, kind="stable")
        # by words, and of each the images that have it, ascending
        self._image_of = np.repeat(np.arange(self.count), [len(image.words) for image in images])[order]
        self._there = np.concatenate([image.there for image in images])[order] if images else np.zeros((0, 0), np.int8)
        self._having = np.bincount(every_word)
        self._rarity = np.log1p(self.count / np.maximum(self._having, 1)).astype(np.float32)
        squares = np.bincount(self._image_of, np.repeat(self._rarity, self._having), minlength=self.count)
        self._nothing = squares == 0
        self._norms = np.sqrt(np.where(self._nothing, 1, squares)).astype(np.float32)

    def rows(self, first: int, last: int) -> np.ndarray:
        """How alike images `first` to `last` (without this) are to all, (last - first, count), each value up to 1.

        To an image without words all are less alike (-1) than to any other.
        """
        alike = np.zeros((last - first, self.count), np.float32)
        for end, size, worth in zip(np.cumsum(self._having).tolist(), self._having.tolist(), self._rarity, strict=True):
            images_here = self._image_of[end - size : end]
            low, high = np.searchsorted(images_here, (first, last))
            if low == high:
                continue
            vectors = torch.from_numpy(self._there[end - size : end]).float().div_(STEPS)
            cosines = torch.mm(vectors[low:high], vectors.T).numpy().ravel()  # numpy's own threads wait for each other
            close = np.flatnonzero(cosines > LEAST_COSINE)
            row, column = np.divmod(close, size)
            cells = (self.count * (images_here[low:high] - first))[row] + images_here[column]
            near = cosines[close]
            alike.ravel()[cells] += worth * near * near * near  # one good direction is worth more than several fair
        alike /= self._norms[first:last, None] * self._norms
        alike[:, self._nothing] = -1
        return alike
