"""Our networks as a method of the evaluation."""

from pathlib import Path

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sekd_cli.config import DetectionSettings
from sekd_cli.evaluation.methods import ComputedMethod, LocalFeatures, Stage
from sekd_cli.features import features_of
from sekd_cli.networks import DenseMaps, DenseNetwork


class Sekd(ComputedMethod):
    """A network's features, read off as `sekd extract` does."""

    def __init__(self, network: DenseNetwork, label: str, settings: DetectionSettings, device: str = "cpu") -> None:
        self.label = label
        self._network = network.eval().to(device)
        self._settings = settings
        self._device = device

    def stages(self) -> list[Stage]:
        """See `ComputedMethod.stages`."""
        return [("network", self._maps), ("post-processing", self._read_off)]

    @torch.inference_mode()
    def _maps(self, grey: NDArray) -> tuple[DenseMaps, int, int]:
        image = torch.from_numpy(grey).to(self._device)[None, None].float() / 255
        height, width = grey.shape
        stride = self._network.stride
        padding = (0, -width % stride, 0, -height % stride)
        pixels = image.flatten(1)
        statistics = torch.stack((pixels.mean(dim=1), pixels.std(dim=1)), dim=1)
        return self._network(F.pad(image, padding, mode="replicate"), statistics), height, width

    @torch.inference_mode()
    def _read_off(self, found: tuple[DenseMaps, int, int]) -> LocalFeatures:
        maps, height, width = found
        mask: Tensor = torch.zeros_like(maps.score_logits[0], dtype=torch.bool)
        mask[:height, :width] = True
        features = features_of(maps, 0, self._settings, self._network.default_threshold, mask)
        return LocalFeatures(
            keypoints=features.keypoints.cpu().numpy(),
            scores=features.scores.cpu().numpy(),
            descriptors=features.descriptors.cpu().numpy(),
        )


def label_of(weights: Path | None) -> str:
    """What a table calls these weights: the file's name without its suffix, `sekd` for the packaged ones."""
    return "sekd" if weights is None else weights.stem
