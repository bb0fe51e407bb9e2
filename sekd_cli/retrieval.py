"""Which images look alike, from their local descriptors alone: VLAD (Jegou et al., CVPR 2010) with a codebook learned
from the same features, each word's residuals normalised on their own (Arandjelovic and Zisserman, CVPR 2013).
"""  # noqa: D205 - one sentence

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sekd_cli.errors import InputFileError
from sekd_cli.feature_file import FeatureReader
from sekd_cli.pair_matching import comparable

WORDS = 64  # of the codebook: enough for thousands of images, and 64 x 64 values are cheap to compare
SAMPLED_IMAGES, SAMPLED_DESCRIPTORS = 400, 150  # what the codebook is learned from: evenly spread, each image's best
DESCRIPTORS_A_WORD = 40  # at least: a word of few is their mean, from which two views of a point lie opposite
ITERATIONS = 15  # of k-means
COMPARED_AT_ONCE = 1024  # images


def nearest(
    features: FeatureReader, names: Sequence[str], count: int, unreadable: dict[str, str]
) -> Iterator[tuple[str, str]]:
    """Pairs of each image with the `count` that look most like it, each pair once, in the order of `names`.

    Reads every image's features twice at most; depends on nothing but these. Of equally alike ones the first named.
    Images whose features can't be read are left out; why is put into `unreadable`, by name.
    """
    codebook = learn_codebook(_sample(features, names, unreadable))
    described = {
        name: aggregate(found, codebook)
        for name in names
        if (found := _descriptors(features, name, unreadable)) is not None
    }
    if described:
        readable = list(described)
        for first, second in nearest_pairs(torch.stack(list(described.values())), count):
            yield readable[first], readable[second]


def learn_codebook(descriptors: Tensor, words: int = WORDS) -> Tensor:
    """Cluster centres of descriptors (M, D) by k-means, (at most `words`, D), from a fixed start."""
    if len(descriptors) == 0:
        return descriptors
    words = min(words, max(1, len(descriptors) // DESCRIPTORS_A_WORD))
    start = torch.randperm(len(descriptors), generator=torch.Generator().manual_seed(0))[:words]
    centres = descriptors[start]
    for _ in range(ITERATIONS):
        members = F.one_hot(_word_of(descriptors, centres), words).to(descriptors)
        sizes = members.sum(dim=0)[:, None]
        centres = torch.where(sizes > 0, members.T @ descriptors / sizes.clamp(min=1), centres)
    return centres


def aggregate(descriptors: Tensor, codebook: Tensor) -> Tensor:
    """One descriptor of an image from its local ones (N, D) and a codebook (W, D): (W * D,), of unit length or zero."""
    if len(descriptors) == 0 or descriptors.shape[1] != codebook.shape[1]:  # a file put together by hand
        return codebook.new_zeros(codebook.numel())
    words = F.one_hot(_word_of(descriptors, codebook), len(codebook)).to(descriptors)
    residuals = words.T @ descriptors - words.sum(dim=0)[:, None] * codebook
    return F.normalize(F.normalize(residuals, dim=1).flatten(), dim=0)


def nearest_pairs(described: Tensor, count: int) -> Iterator[tuple[int, int]]:
    """Pairs i < j of rows (I, G) where one is among the `count` most similar to the other, sorted.

    Zero rows, of images without descriptors, are less similar than any other.
    """
    nothing = (described == 0).all(dim=1)
    total = len(described)
    count = min(count, total - 1)
    found: set[tuple[int, int]] = set()
    for start in range(0, total if count > 0 else 0, COMPARED_AT_ONCE):
        similarity = described[start : start + COMPARED_AT_ONCE] @ described.T
        similarity[:, nothing] = -2  # below every cosine
        similarity.diagonal(start).fill_(-torch.inf)  # an image is not a neighbour of its own
        ranked = similarity.sort(dim=1, descending=True, stable=True).indices[:, :count]
        for row, neighbours in enumerate(ranked.tolist(), start):
            found.update((min(row, other), max(row, other)) for other in neighbours)
    yield from sorted(found)


def _word_of(descriptors: Tensor, centres: Tensor) -> Tensor:
    """Index of the nearest centre, (N, D) and (W, D) -> (N,)."""
    return (descriptors @ centres.T - (centres**2).sum(dim=1) / 2).argmax(dim=1)


def _sample(features: FeatureReader, names: Sequence[str], unreadable: dict[str, str]) -> Tensor:
    step = max(1, len(names) // SAMPLED_IMAGES)
    found = (_descriptors(features, name, unreadable) for name in names[::step])
    sampled = [part[:SAMPLED_DESCRIPTORS] for part in found if part is not None] or [torch.zeros(0, 0)]
    width = max(part.shape[1] for part in sampled)
    return torch.cat([part for part in sampled if part.shape[1] == width])


def _descriptors(features: FeatureReader, name: str, unreadable: dict[str, str]) -> Tensor | None:
    """(N, D), as in matching; None, and why in `unreadable`, if they can't be read."""
    try:
        return comparable(torch.from_numpy(features.read(name).descriptors))
    except InputFileError as error:
        unreadable[name] = str(error)
        return None
