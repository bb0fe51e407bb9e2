"""The local features of an image: keypoints with scores, and descriptors sampled where they are.

The shape alphabet of the whole code: B batch, N keypoints, D descriptor, C channels, H x W image; keypoints are (x, y)
in `geometry`'s convention. Nothing here or in `detection` loops over keypoints in Python.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sekd_cli.config import DetectionSettings
from sekd_cli.coordinates import rescale_points
from sekd_cli.detection import detect
from sekd_cli.geometry import sample_map
from sekd_cli.networks import DenseMaps


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """The local features of one image, best first."""

    keypoints: Tensor  # (N, 2) float32, x and y in pixels
    scores: Tensor  # (N,) float32 keypoint probabilities, descending
    descriptors: Tensor  # (N, D) float32, rows of unit length
    image_size: tuple[int, int]  # width, height of the image that the keypoints refer to
    scales: Tensor | None = None  # (N,) float32, pixels of that image per pixel that the network saw
    turned: Tensor | None = None  # (3, N, D) float32, descriptors of the image turned by 1, 2 and 3 quarters

    def __len__(self) -> int:
        return self.keypoints.shape[0]


def sample_descriptors(descriptor_maps: tuple[Tensor, ...], keypoints: Tensor, width: int) -> Tensor:
    """Descriptors at keypoints, each map read bilinearly and the whole L2-normalised (paper Sec. 3.2).

    descriptor_maps: each (B, D_i, h_i, w_i) of images `width` pixels wide; keypoints: (B, N, 2) in pixels of these.
    Returns (B, N, D) float32, rows of unit length.
    """
    sampled = [sample_map(maps.float(), keypoints, map_scale=width / maps.shape[-1]) for maps in descriptor_maps]
    if keypoints.device.type != "cpu":
        return F.normalize(torch.cat(sampled, dim=1).transpose(1, 2).contiguous(), dim=2)
    rows = [torch.cat([one.t() for one in maps], dim=1) for maps in zip(*sampled, strict=True)]  # a third of the time
    return F.normalize(rows[0][None] if len(rows) == 1 else torch.stack(rows), dim=2)


def features_of(
    maps: DenseMaps,
    index: int,
    settings: DetectionSettings,
    mask: Tensor | None = None,
    *,
    octave: int = 0,
) -> Features:
    """The features of image `index` of a batch that was halved `octave` times, in the pixels that it had before.

    mask: (H, W) as in `detect`.
    """
    height, width = maps.score_logits.shape[-2:]
    keypoints, scores = detect(maps.score_logits[index], settings, mask, octaves=octave)
    own = tuple(one[index : index + 1] for one in maps.descriptor_maps)
    return Features(
        keypoints=rescale_points(keypoints, 2.0**octave),
        scores=scores,
        descriptors=sample_descriptors(own, keypoints[None], width)[0],
        image_size=(width << octave, height << octave),
    )
