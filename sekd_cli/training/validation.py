"""How good a network is, without labels: held-out photographs under fixed homographies and changes of light."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import cv2
import numpy as np
import torch
from torch import Tensor

from sekd_cli.config import DetectionSettings, MatchingSettings
from sekd_cli.evaluation.homography import THRESHOLDS, corner_error, fractions_below, matching_accuracy, repeatability
from sekd_cli.features import Features, features_of
from sekd_cli.matching import match_descriptors
from sekd_cli.networks import DenseMaps, DenseNetwork
from sekd_cli.networks.precision import mixed_precision
from sekd_cli.training.dataset import PairDataset
from sekd_cli.training.octaves import best_of_octaves, images_at, seen_at
from sekd_cli.training.parallax import Correspondence
from sekd_cli.training.photographs import Photographs
from sekd_cli.training.settings import TrainingSettings

# fixed: figures of runs with other settings stay comparable
VALIDATION_VIEWS = TrainingSettings(
    batch_size=2,
    rotation=50.0,
    any_rotation_share=0.12,
    zoom=1.8,
    stretch=1.5,
    shear=20.0,
    shift=0.35,
    tilt=0.25,
    other_surroundings=True,
    exposed_share=0.0,
    octaves=2,  # as `extract` sees photographs, unless it's told otherwise
)
WIDE_VIEWS = replace(VALIDATION_VIEWS, any_rotation_share=0.25, zoom=2.5, stretch=2.0, tilt=0.4)
MILD_VIEWS = replace(
    VALIDATION_VIEWS, rotation=10.0, any_rotation_share=0.0, zoom=1.25, stretch=1.3, shear=8.0, tilt=0.15
)
SLANTED_VIEWS = replace(MILD_VIEWS, stretch=2.2, tilt=0.4)
ZOOMED_VIEWS = replace(MILD_VIEWS, any_rotation_share=1.0, zoom=4.0)
STEEP_VIEWS = replace(MILD_VIEWS, rotation=40.0, zoom=1.5, stretch=4.0, shear=0.0, tilt=0.5)
ALL_VIEWS = {
    "usual": VALIDATION_VIEWS,
    "wide": WIDE_VIEWS,
    "mild": MILD_VIEWS,
    "slanted": SLANTED_VIEWS,
    "steep": STEEP_VIEWS,
    "zoomed": ZOOMED_VIEWS,
}
VALIDATION_KEY = (20200609,)  # of the random views, the same for every run
KEYPOINTS = 300  # a view of 320x256, as dense as the paper's 500 at 640x480 and a bit
# for all networks, so that their figures compare
DETECTION = DetectionSettings(max_keypoints=KEYPOINTS, threshold=0, nms_radius=4)
RANSAC_PIXELS = 3.0


class HeldOutPairs(PairDataset):
    """Item `row` is that photograph in `batch_size` pairs of views, the same for every run."""

    def __init__(self, photographs: Photographs, held_out: np.ndarray, views: TrainingSettings) -> None:
        no_labels = np.full((len(held_out), 1, 3), np.nan, dtype=np.float32)
        super().__init__(photographs, held_out, no_labels, views, VALIDATION_KEY)

    def rows(self, step: int, generator: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
        """One photograph; beyond its edges lie the next ones."""
        rows, _ = super().rows(step, generator)  # what follows is drawn as for any batch
        return np.full_like(rows, step), (step + 1 + np.arange(len(rows))) % len(self.chosen)


def validate(
    network: DenseNetwork,
    photographs: Photographs,
    held_out: np.ndarray,
    detection: DetectionSettings = DETECTION,
    views: TrainingSettings = VALIDATION_VIEWS,
) -> dict[str, float]:
    """Figures over `views.batch_size` pairs of each held-out photograph, all in [0, 1] but localisation (pixels).

    Returns repeatability and localisation error at 3 px, mean matching accuracy at 1, 3 and 5 px, homography accuracy
    (mean over 1 to 10 px), matches a pair, and `score`: the mean of matching accuracies and homography accuracy, by
    which the best checkpoint is chosen. Empty if nothing is held out.
    """
    named = mean_figures(held_out_features(network, photographs, held_out, detection, views))
    if not named:
        return {}
    accuracies = [named["mma_1"], named["mma_3"], named["mma_5"], named["homography_accuracy"]]
    return named | {"score": float(np.mean(accuracies))}


def held_out_features(
    network: DenseNetwork,
    photographs: Photographs,
    held_out: np.ndarray,
    detection: DetectionSettings,
    views: TrainingSettings,
) -> Iterator[tuple[Features, Features, Tensor]]:
    """What a network finds in both views of each pair, at `views.octaves` sizes, and `second_from_first` (3, 3)."""
    for first, second, there in held_out_correspondences(network, photographs, held_out, detection, views):
        yield first, second, there.second_from_first[0]


def held_out_correspondences(
    network: DenseNetwork,
    photographs: Photographs,
    held_out: np.ndarray,
    detection: DetectionSettings,
    views: TrainingSettings,
) -> Iterator[tuple[Features, Features, Correspondence]]:
    """`held_out_features`, and where points of the first view are in the second, by parallax too."""
    device = next(network.parameters()).device
    octaves = range(views.octaves)
    pairs = HeldOutPairs(photographs, held_out, views)
    for row in range(len(held_out)):
        batch = pairs[row]
        images, seen = batch.images.to(device), batch.seen.to(device)
        with torch.inference_mode(), mixed_precision(device):
            maps = [network(images_at(images, octave)) for octave in octaves]
        masks = [seen_at(seen, octave) for octave in octaves]
        for pair in range(views.batch_size):
            both = (pair, views.batch_size + pair)
            first, second = (_features_at(maps, masks, view, detection) for view in both)
            yield first, second, batch.correspondence.only(pair)


def _features_at(
    maps: Sequence[DenseMaps], masks: Sequence[Tensor], view: int, detection: DetectionSettings
) -> Features:
    """The best of one view at all sizes; maps and masks (V, h, w) are those of all views at each."""
    each = enumerate(zip(maps, masks, strict=True))
    found = [features_of(one, view, detection, mask[view], octave=octave) for octave, (one, mask) in each]
    return best_of_octaves(found, detection.max_keypoints)


FIGURES = ("repeatability", "localisation_error", "mma_1", "mma_3", "mma_5", "homography_accuracy", "matches")


def mean_figures(pairs: Iterable[tuple[Features, Features, Tensor]]) -> dict[str, float]:
    """FIGURES, their means over pairs as `pair_figures` takes them; empty without any."""
    figures = [pair_figures(*pair) for pair in pairs]
    return dict(zip(FIGURES, np.nanmean(figures, axis=0).tolist(), strict=True)) if figures else {}


def pair_figures(first: Features, second: Features, second_from_first: Tensor) -> tuple[float, ...]:
    """FIGURES of the features of two views, (3, 3) the homography between them."""
    truth = second_from_first.double().numpy()
    xy0, xy1 = matched_points(first, second)
    found, localisation = repeatability(
        first.keypoints.cpu().numpy(), second.keypoints.cpu().numpy(), truth, first.image_size, second.image_size
    )
    accuracy = matching_accuracy(xy0, xy1, truth, (1, 3, 5))
    return (found, localisation, *accuracy, homography_accuracy(xy0, xy1, truth, first.image_size), float(len(xy0)))


def matched_points(first: Features, second: Features) -> tuple[np.ndarray, np.ndarray]:
    """Places (n, 2) in both views of mutual nearest neighbours."""
    matches, _ = match_descriptors(first.descriptors, second.descriptors, MatchingSettings())
    matches = matches.cpu()
    kept = matches >= 0
    return first.keypoints.cpu()[kept].double().numpy(), second.keypoints.cpu()[matches[kept]].double().numpy()


def homography_accuracy(
    xy0: np.ndarray, xy1: np.ndarray, truth: np.ndarray, size: tuple[int, int], estimator: int = cv2.RANSAC
) -> float:
    """`corner_accuracy` of the homography found by matched points (n, 2).

    truth, size: as there; estimator: OpenCV's, 0 for least squares.
    """
    estimated: np.ndarray | None = None
    if len(xy0) >= 4:
        cv2.setRNGSeed(0)
        estimated, _ = cv2.findHomography(xy0, xy1, estimator, RANSAC_PIXELS)
    return corner_accuracy(estimated, truth, size)


def corner_accuracy(homography: np.ndarray | None, truth: np.ndarray, size: tuple[int, int]) -> float:
    """Share of the thresholds from 1 to 10 pixels that the corners' error of a homography is within.

    homography: (3, 3) or None; truth: (3, 3), second from first; size: width, height of the first image.
    """
    return float(fractions_below([corner_error(homography, truth, *size)], THRESHOLDS).mean())
