"""What weights do on held-out photographs, and what suppression, refinement and precision do to that.

    python benchmarks/validation.py RUN [WEIGHTS...] [--views usual,mild,...] [--keypoints 300] [--size 320x256]
        [--octaves 2] [--shift 0.35] [--closeness 0.6,1.1] [--pairs 2] [--drawn-out] [--plain] [--precision int8]
        [--ways] [--lacks] [--zooms]

RUN is a folder of `sekd train`; WEIGHTS are by default the model in it. Prints a line for each of the weights and each
kind of views: repeatability, localisation error in pixels, share of matches right to 1, 3 and 5 pixels, homography
accuracy, of `--keypoints` a view (300 are many for 320x256 pixels; 100 is what 375 are to 640x480), and the number of
matches a pair, since a higher share of fewer matches may be no gain. Views are seen at `--octaves` sizes, each half the
one before, as `sekd extract --scales 1,0.5` sees photographs. Mild views are upright and of nearly one size, slanted
and steep ones are seen from the side, zoomed ones turned by any angle and up to four times as large. The views of a
pair lie up to `--shift` of their width apart: the less, the more of a match can be told from where in the view it is.
`--closeness`: photograph pixels a pixel of a view; from 1 on nothing is enlarged, as in what cameras give, but small
photographs fill less of a view. `--pairs` of a photograph: two leave homography accuracy of one kind uncertain by two
points, since a pair is found or not. `--drawn-out` has a photograph's last pixels beyond its edge, as figures up to
docs/EXPERIMENTS.md's 50 have, instead of another photograph. `--plain` views are of one good camera: neither blurred,
compressed nor noisy. `--precision` is one of `sekd extract`'s; without it networks compute as in training, in mixed
precision. `--ways` adds, on usual views, other ways to read keypoints off the scores (under mixed precision, as in
training) and each precision of `sekd extract`; and RootSIFT. `--lacks` tells instead what homography accuracy lacks: it
is told of the matches as they are (RANSAC, then as `sekd match --verify homography` has it before it matches again,
which `guided.py` tells), of the right ones alone (RANSAC, then least squares), of all with half the right ones' error,
and with none; then the quartiles of that error in pixels, and the share of pairs that have fewer than eight right
matches. `--zooms` tells it by how many times larger one view is than the other, in half octaves (number of pairs), and
of RootSIFT, too.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from sekd_cli.config import DetectionSettings, VerificationSettings
from sekd_cli.features import Features
from sekd_cli.networks import DenseMaps, DenseNetwork
from sekd_cli.networks.inference import inference_network
from sekd_cli.networks.precision import PRECISIONS, possible_precisions
from sekd_cli.networks.weights_file import load_network
from sekd_cli.training import validation
from sekd_cli.training.photographs import Photographs
from sekd_cli.training.run_folder import RunFolder
from sekd_cli.training.self_evolution import held_out_photographs
from sekd_cli.training.settings import TrainingSettings
from sekd_cli.training.views import footprints
from sekd_cli.verification import verify

WAYS = {
    "radius 2": replace(validation.DETECTION, nms_radius=2),
    "radius 3": replace(validation.DETECTION, nms_radius=3),
    "radius 4": validation.DETECTION,
    "radius 6": replace(validation.DETECTION, nms_radius=6),
    "radius 4, whole pixels": replace(validation.DETECTION, subpixel=False),
}
HOMOGRAPHY = VerificationSettings(model="homography", threshold=validation.RANSAC_PIXELS, min_inliers=0)
CPU = torch.device("cpu")
CONTRAST = 0.005  # SIFT's threshold, low enough to find its budget of keypoints in dim views


class AtPrecision(nn.Module):
    """A network as `sekd extract --precision` runs it, whatever context it is called in."""

    def __init__(self, network: DenseNetwork, precision: str) -> None:
        super().__init__()
        self.ready = inference_network(network, precision, CPU)

    def forward(self, image: torch.Tensor) -> DenseMaps:
        """(B, 1, H, W) -> the maps."""
        with torch.autocast("cpu", enabled=False):
            maps: DenseMaps = self.ready(image.contiguous(memory_format=torch.channels_last))
        return maps


def rootsift(image: torch.Tensor, seen: torch.Tensor, keypoints: int) -> Features:
    """OpenCV's SIFT on a grey view (H, W) in [0, 1], square roots of its normalised descriptors."""
    finder = cv2.SIFT_create(nfeatures=keypoints, contrastThreshold=CONTRAST)
    pixels, mask = ((values.numpy() * 255).astype(np.uint8) for values in (image, seen))
    found, descriptors = finder.detectAndCompute(pixels, mask)
    histograms = torch.zeros(0, 128) if descriptors is None else torch.from_numpy(descriptors)
    return Features(
        keypoints=torch.tensor([point.pt for point in found], dtype=torch.float32).reshape(-1, 2),
        scores=torch.ones(len(found)),
        descriptors=(histograms / histograms.sum(dim=1, keepdim=True).clamp(min=1e-6)).sqrt(),
        image_size=(image.shape[1], image.shape[0]),
    )


def rootsift_features(
    photographs: Photographs, held_out: np.ndarray, views: TrainingSettings, keypoints: int
) -> Iterator[tuple[Features, Features, torch.Tensor]]:
    """What `validation.held_out_features` has of a network, of RootSIFT."""
    count = views.batch_size
    pairs = validation.HeldOutPairs(photographs, held_out, views)
    for row in range(len(held_out)):
        batch = pairs[row]
        for pair in range(count):
            first, second = (rootsift(batch.images[i, 0], batch.seen[i], keypoints) for i in (pair, count + pair))
            yield first, second, batch.second_from_first[pair]


def half_octaves(second_from_first: torch.Tensor, size: tuple[int, int]) -> int:
    """How many whole half octaves one view of a pair is larger than the other, in the middle of the first."""
    width, height = size
    zoom = footprints(second_from_first[None], height, width).det().abs().sqrt()
    return int(abs(2 * math.log2(zoom.item())))


def show_by_zoom(name: str, pairs: Iterator[tuple[Features, Features, torch.Tensor]]) -> None:
    """A line for each half octave."""
    binned: dict[int, list[tuple[Features, Features, torch.Tensor]]] = {}
    for pair in pairs:
        binned.setdefault(half_octaves(pair[2], pair[0].image_size), []).append(pair)
    for step in sorted(binned):
        show(f"{name} x{2 ** (step / 2):.1f} ({len(binned[step])})", validation.mean_figures(binned[step]))


def show(name: str, figures: dict[str, float]) -> None:
    """One line."""
    percent = {key: f"{100 * value:.1f}" for key, value in figures.items()}
    accuracy = " / ".join(percent[f"mma_{pixels}"] for pixels in (1, 3, 5))
    print(f"{name:32} {percent['repeatability']:>5} {figures['localisation_error']:5.2f}   {accuracy}", end="")
    print(f"   {percent['homography_accuracy']} {figures['matches']:7.1f}", flush=True)


def show_lacks(name: str, pairs: Iterator[tuple[Features, Features, torch.Tensor]]) -> None:
    """One line: homography accuracy if matches were better than they are."""
    accuracies, errors = [], []
    for first, second, second_from_first in pairs:
        truth = second_from_first.double().numpy()
        xy0, xy1 = validation.matched_points(first, second)
        there = cv2.perspectiveTransform(xy0[None], truth)[0] if len(xy0) else xy1
        apart = np.linalg.norm(there - xy1, axis=1)
        right = apart < validation.RANSAC_PIXELS
        errors.append(apart[right])
        moved = [np.where(right[:, None], part * xy1 + (1 - part) * there, xy1) for part in (0.5, 0.0)]
        cases = [(xy0, xy1, cv2.RANSAC), (xy0[right], xy1[right], cv2.RANSAC), (xy0[right], xy1[right], 0)]
        cases += [(xy0, xy, cv2.RANSAC) for xy in moved]
        _, verified = verify(xy0, xy1, HOMOGRAPHY)
        accuracies.append(
            [
                validation.corner_accuracy(verified, truth, first.image_size),
                *(validation.homography_accuracy(one, two, truth, first.image_size, how) for one, two, how in cases),
            ]
        )
    means = (f"{100 * value:.1f}" for value in np.mean(accuracies, axis=0))
    by_verify, as_is, alone, least_squares, half, exact = means
    quartiles = " ".join(f"{value:.2f}" for value in np.quantile(np.concatenate(errors), (0.25, 0.5, 0.75)))
    few = np.mean([len(one) < 8 for one in errors])
    print(f"{name:32} {as_is}, {by_verify}   right {alone}, {least_squares}   less error {half}, {exact}", end="")
    print(f"   {quartiles}   {100 * few:.1f}", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("weights", type=Path, nargs="*")
    parser.add_argument("--views", default=",".join(validation.ALL_VIEWS))
    parser.add_argument("--keypoints", type=int, default=validation.KEYPOINTS)
    parser.add_argument("--size", default=f"{validation.VALIDATION_VIEWS.width}x{validation.VALIDATION_VIEWS.height}")
    parser.add_argument("--octaves", type=int, default=validation.VALIDATION_VIEWS.octaves)
    parser.add_argument("--shift", type=float, default=validation.VALIDATION_VIEWS.shift)
    usual_closeness = f"{validation.VALIDATION_VIEWS.closest},{validation.VALIDATION_VIEWS.farthest}"
    parser.add_argument("--closeness", default=usual_closeness)
    parser.add_argument("--pairs", type=int, default=validation.VALIDATION_VIEWS.batch_size)
    parser.add_argument("--drawn-out", action="store_true")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--precision", choices=PRECISIONS[1:])
    parser.add_argument("--ways", action="store_true")
    parser.add_argument("--lacks", action="store_true")
    parser.add_argument("--zooms", action="store_true")
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    closest, farthest = map(float, options.closeness.split(","))
    extracted = DetectionSettings(max_keypoints=options.keypoints, threshold=0, nms_radius=2)
    run = RunFolder(options.run)
    photographs = Photographs(Path(run.data()["cache"]))
    held_out = held_out_photographs(photographs, run.settings())
    views = {
        kind: replace(
            changes,
            batch_size=options.pairs,
            width=width,
            height=height,
            octaves=options.octaves,
            shift=options.shift,
            closest=closest,
            farthest=farthest,
            other_surroundings=not options.drawn_out,
            plain_share=float(options.plain),
        )
        for kind, changes in validation.ALL_VIEWS.items()
    }
    for path in options.weights or [run.path / "model.safetensors"]:
        network = load_network(path)
        shown = AtPrecision(network, options.precision) if options.precision else network
        for kind in options.views.split(","):
            name, arguments = f"{path.stem}, {kind}", (shown, photographs, held_out, extracted, views[kind])
            if options.lacks:
                show_lacks(name, validation.held_out_features(*arguments))
            elif options.zooms:
                show_by_zoom(name, validation.held_out_features(*arguments))
            else:
                show(name, validation.validate(*arguments))
        if not options.ways:
            continue
        for name, detection in WAYS.items():
            show(name, validation.validate(network, photographs, held_out, detection, views["usual"]))
        for precision in possible_precisions(CPU, quantisable=network.quantisable):
            ready = AtPrecision(network, precision)
            show(f"radius 2, {precision}", validation.validate(ready, photographs, held_out, extracted, views["usual"]))
    for kind in options.views.split(",") if options.ways or options.zooms else ():
        pairs = rootsift_features(photographs, held_out, views[kind], options.keypoints)
        if options.zooms:
            show_by_zoom(f"RootSIFT, {kind}", pairs)
        else:
            show(f"RootSIFT, {kind}", validation.mean_figures(pairs))


if __name__ == "__main__":
    main()
