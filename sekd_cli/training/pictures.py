"""What a round looks like: its labels on photographs, and the matches of held-out ones."""

from pathlib import Path

import cv2
import numpy as np
import torch

from sekd_cli.drawing import INLIER, OUTLIER, Legend, View, draw_keypoints, draw_matches, fitted
from sekd_cli.evaluation.homography import transfer_errors
from sekd_cli.features import features_of
from sekd_cli.networks import DenseNetwork
from sekd_cli.networks.precision import mixed_precision
from sekd_cli.new_file import new_file
from sekd_cli.training.photographs import Photographs
from sekd_cli.training.validation import DETECTION, VALIDATION_VIEWS, HeldOutPairs, matched_points

SHOWN = 3  # photographs of each kind
EDGE = 640  # pixels: longer edge of a photograph in a picture
RIGHT = 3.0  # pixels within which a match is right


def label_picture(photographs: Photographs, chosen: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Some photographs with their labels, coloured by score; RGB (H, W, 3)."""
    pictures = []
    for index, found in zip(chosen[:SHOWN], labels[:SHOWN], strict=True):
        kept = found[np.isfinite(found[:, 0])]
        view = View(pixels=np.ascontiguousarray(photographs[index].permute(1, 2, 0).numpy()), keypoints=kept[:, :2])
        pictures.append(draw_keypoints(fitted(view, EDGE), kept[:, 2], "labels"))
    height = max(picture.shape[0] for picture in pictures)
    padded = [
        cv2.copyMakeBorder(one, 0, height - len(one), 0, 8, cv2.BORDER_CONSTANT, value=(255,) * 3) for one in pictures
    ]
    return np.concatenate(padded, axis=1)


@torch.inference_mode()
def match_picture(network: DenseNetwork, photographs: Photographs, held_out: np.ndarray) -> np.ndarray:
    """Pairs of views of held-out photographs, as validation sees them, with right and wrong matches; RGB (H, W, 3)."""
    device = next(network.parameters()).device
    pictures = []
    pairs = HeldOutPairs(photographs, held_out, VALIDATION_VIEWS)
    for row in range(min(SHOWN, len(held_out))):
        batch = pairs[row]
        with mixed_precision(device):
            maps = network(batch.images.to(device, memory_format=torch.channels_last))
        both = (0, VALIDATION_VIEWS.batch_size)
        first, second = (features_of(maps, i, DETECTION, batch.seen[i].to(device)) for i in both)
        xy0, xy1 = matched_points(first, second)
        right = transfer_errors(xy0, xy1, batch.second_from_first[0].double().numpy()) < RIGHT
        order = np.argsort(right, kind="stable")  # the right ones on top
        grey = [(batch.images[i, 0].numpy() * 255).astype(np.uint8) for i in both]
        view0, view1 = (
            View(pixels=np.repeat(pixels[..., None], 3, axis=2), keypoints=xy[order])
            for pixels, xy in zip(grey, (xy0, xy1), strict=True)
        )
        colours = [INLIER if fine else OUTLIER for fine in right[order].tolist()]
        wrong = int((~right).sum())
        marks = ((INLIER, f"{len(right) - wrong} right to 3 px"), (OUTLIER, f"{wrong} wrong"))
        pictures.append(
            draw_matches(
                fitted(view0, EDGE), fitted(view1, EDGE), colours, Legend("held out", "", marks=marks), faint=wrong
            )
        )
    return np.concatenate(pictures)


def save_picture(path: Path, picture: np.ndarray) -> None:
    """Write a picture, RGB (H, W, 3) uint8, whole or not at all. Raises OutputError."""
    encoded = cv2.imencode(path.suffix, np.ascontiguousarray(picture[..., ::-1]))[1]
    with new_file(path, overwrite=True) as part:
        part.write_bytes(encoded.tobytes())
