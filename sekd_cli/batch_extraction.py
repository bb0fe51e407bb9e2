"""From files to features, a batch of images at a time: what a process, or a thread, of `sekd extract` does."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sekd_cli.config import DEFAULT_MAX_PIXELS
from sekd_cli.device import give_back_memory
from sekd_cli.errors import ImageError
from sekd_cli.extraction import Extractor
from sekd_cli.image_search import ImageEntry
from sekd_cli.images import read_image, read_mask
from sekd_cli.pyramid import PreparedImage
from sekd_cli.stored_features import Source, StoredFeatures, source_of
from sekd_cli.workers import Worker

GIVE_BACK_EVERY = 64  # batches: features of that many may lie about as free memory


class Job(NamedTuple):
    """An image to extract, and its mask if it has one."""

    entry: ImageEntry
    mask: Path | None = None


class Extracted(NamedTuple):
    """The features of an image, or why it has none."""

    source: Source
    features: StoredFeatures | None
    failure: str = ""


Batch = Sequence[Job]
BatchWorker = Worker[Batch, list[Extracted]]


class BatchExtractor:
    """From files to features, a batch at a time: what a worker process does."""

    def __init__(self, extractor: Extractor, max_pixels: int = DEFAULT_MAX_PIXELS) -> None:
        """max_pixels: of the largest image to decode; 0 for no limit."""
        self.extractor, self.max_pixels = extractor, max_pixels
        self._batches = 0

    def __call__(self, jobs: Batch) -> list[Extracted]:
        """Decode images and find their features: called in a process of its own."""
        self._batches += 1
        if self._batches % GIVE_BACK_EVERY == 0:
            give_back_memory()
        return self.features([self.load(job) for job in jobs])

    def load(self, job: Job) -> "_Loaded":
        """Decode an image, and its mask."""
        try:
            source = source_of(job.entry.path, job.mask)  # before reading: a later change is then noticed
        except OSError:
            source = Source(0, 0)  # reading says what is wrong
        try:
            photograph = read_image(job.entry.path, max_pixels=self.max_pixels, enough=self.extractor.enough)
            mask = None if job.mask is None else read_mask(job.mask, photograph)
            return _Loaded(job, source, self.extractor.prepare(photograph, mask))
        except ImageError as error:
            return _Loaded(job, source, None, str(error))
        except MemoryError:
            return _Loaded(job, source, None, f"{job.entry.path}: too large for the memory; make it smaller")

    def features(self, loaded: Sequence["_Loaded"]) -> list[Extracted]:
        """The features of each, those of one size found together."""
        found = {index: Extracted(one.source, None, one.failure) for index, one in enumerate(loaded)}
        of_size: dict[tuple[tuple[int, int], ...], list[int]] = {}
        for index, one in enumerate(loaded):
            if one.image is not None:
                of_size.setdefault(self.extractor.padded_sizes(one.image), []).append(index)
        for indices in of_size.values():
            found |= dict(zip(indices, self._together([loaded[index] for index in indices]), strict=True))
        return [found[index] for index in range(len(loaded))]

    def _together(self, same: Sequence["_Loaded"]) -> list[Extracted]:
        try:
            features = self.extractor.extract([one.image for one in same if one.image is not None])
        except ImageError as error:
            if len(same) == 1:
                return [Extracted(same[0].source, None, f"{same[0].job.entry.path}: {error}")]
            return [found for one in same for found in self._together([one])]
        return [Extracted(one.source, _as_in_file(found)) for one, found in zip(same, features, strict=True)]


class _Loaded(NamedTuple):
    """An image ready for the network, or why it isn't."""

    job: Job
    source: Source
    image: PreparedImage | None
    failure: str = ""


def _as_in_file(features: StoredFeatures) -> StoredFeatures:
    """Descriptors laid out by columns, as the file has them, so that the thread that writes need not."""
    return replace(features, descriptors=np.asfortranarray(features.descriptors))
