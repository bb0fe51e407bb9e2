"""Our networks as a method of the evaluation, through the same extractor as `sekd extract`."""

from collections.abc import Sequence
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray

from sekd_cli.config import DetectionSettings, ViewSettings
from sekd_cli.evaluation.methods import ComputedMethod, LocalFeatures
from sekd_cli.extraction import Extractor
from sekd_cli.images import Photograph
from sekd_cli.networks import DenseMaps, DenseNetwork

WHOLE = ViewSettings(max_size=0)  # an evaluation resizes images itself, for all methods alike


class Sekd(ComputedMethod):
    """A network's features."""

    def __init__(
        self,
        network: DenseNetwork,
        label: str,
        settings: DetectionSettings,
        device: torch.device,
        *,
        precision: str = "float32",
        views: ViewSettings = WHOLE,
    ) -> None:
        self.label = label
        self._extractor = TimedExtractor(network, settings, device=device, views=views, precision=precision)

    def compute(self, grey: NDArray[np.uint8]) -> LocalFeatures:
        """See `ComputedMethod.compute`."""
        self._extractor.network_seconds = 0.0
        height, width = grey.shape
        photograph = Photograph(pixels=grey, orientation=1, stored_size=(width, height))
        found = self._extractor.extract([self._extractor.prepare(photograph)])[0]
        self.network_seconds = self._extractor.network_seconds
        return LocalFeatures(keypoints=found.keypoints, scores=found.scores, descriptors=found.descriptors)


class TimedExtractor(Extractor):
    """An extractor that keeps how long its network took."""

    network_seconds = 0.0  # all passes since it was last set to 0

    def _run(self, pixels: Sequence[NDArray[np.uint8]], statistics: Sequence[tuple[float, float]]) -> DenseMaps:
        start = perf_counter()
        maps = super()._run(pixels, statistics)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.network_seconds += perf_counter() - start
        return maps
