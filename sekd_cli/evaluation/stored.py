"""A feature file, ours or another tool's, as a method of the evaluation."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from sekd_cli.errors import InputFileError
from sekd_cli.evaluation.images import EvaluationImage
from sekd_cli.evaluation.methods import LocalFeatures, Method
from sekd_cli.feature_file import FeatureReader, name_of
from sekd_cli.pair_matching import comparable


class Stored(Method):
    """The features of a file in hloc's layout, moved to the evaluated size, the best of each image by score."""

    def __init__(self, path: Path, max_keypoints: int) -> None:
        self.label = path.stem
        self._reader = FeatureReader(path)
        self._max_keypoints = max_keypoints
        self._names = frozenset(self._reader.names())
        self._paths: dict[str, Path] = {}  # whose features each name turned out to be

    def features(self, image: EvaluationImage) -> LocalFeatures:
        """See `Method.features`. Raises InputFileError where the file hasn't this image, or one of another size."""
        name = self._name_of(image.path)
        stored = self._reader.read(name)
        larger = any(theirs > ours for ours, theirs in zip(image.original_size, stored.image_size, strict=True))
        if stored.image_size != image.original_size and (larger or stored.size_stated):
            theirs, ours = ("x".join(map(str, size)) for size in (stored.image_size, image.original_size))
            raise InputFileError(f"{self._reader.path}: {image.path} is {theirs} there, {ours} here; extract it again")
        order = np.argsort(-stored.scores, kind="stable")[: self._max_keypoints or None]
        features = LocalFeatures(
            keypoints=stored.keypoints[order],
            scores=stored.scores[order],
            descriptors=comparable(torch.from_numpy(stored.descriptors[order])).numpy(),
        )
        return features.moved(image.evaluated_from_original)

    def check(self, paths: Iterable[Path]) -> None:
        """See `Method.check`."""
        for path in paths:
            self._name_of(path)

    def _name_of(self, path: Path) -> str:
        """See `name_of`; no two images may share one."""
        name, file = name_of(path, self._names), self._reader.path
        if name is None:
            raise InputFileError(f"{file}: no features of {path}; extract the folder that is evaluated")
        other = self._paths.setdefault(name, path)
        if other != path:
            raise InputFileError(f"{file}: {name} could be {other} or {path}; extract the folder above both")
        return name
