"""XFeat (Potje et al. 2024) as Kornia has it, to be timed beside our networks: `pip install kornia`.

Its weights are random unless a file is given: the arithmetic is the same, and without a threshold the keypoints are as
many as asked for.
"""

from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sekd_cli.evaluation.methods import ComputedMethod, LocalFeatures


class XFeat(ComputedMethod):
    """The method, in float32, the only precision that it's published for."""

    def __init__(self, max_keypoints: int, weights: str = "") -> None:
        """Raises SystemExit without Kornia. weights: a state dict of its authors, whose threshold then holds, too."""
        try:
            from kornia.feature.xfeat import XFeat as Network  # noqa: PLC0415 - nothing else needs it
        except ImportError as error:
            raise SystemExit("XFeat: pip install kornia (0.9 or later)") from error
        self.label = "xfeat"
        torch.manual_seed(0)
        self.whole = Network(max_keypoints, 0.05 if weights else 0.0).eval()
        if weights:
            self.whole.net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        del self.whole.net.fine_matcher  # of another way to match
        forward = self.whole.net.forward

        def timed(pixels: torch.Tensor) -> Any:
            start = perf_counter()
            maps = forward(pixels)
            self.network_seconds = perf_counter() - start
            return maps

        self.whole.net.forward = timed

    @torch.inference_mode()
    def compute(self, grey: NDArray[np.uint8]) -> LocalFeatures:
        """See `ComputedMethod.compute`."""
        found = self.whole.detectAndCompute(torch.from_numpy(grey)[None, None].float() / 255)[0]
        return LocalFeatures(**{name: values.numpy() for name, values in found.items()})
