"""Labelling photographs with keypoints: the half of a round that makes the next update's pseudo-labels."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sekd_cli.config import DetectionSettings
from sekd_cli.detection import detect
from sekd_cli.errors import InputFileError, OutputError
from sekd_cli.file_errors import write_reason
from sekd_cli.geometry import inside, pixel_grid
from sekd_cli.networks import DenseNetwork
from sekd_cli.training.affine_adaptation import adapted_scores, look_at_references
from sekd_cli.training.photographs import Photographs
from sekd_cli.training.photometric import LUMA
from sekd_cli.training.randomness import generator_of
from sekd_cli.training.ranks import gathered, rank, ranks, wait
from sekd_cli.training.reliability import WEAKEST_CORNER, corner_strength, reliability
from sekd_cli.training.run_folder import write_whole
from sekd_cli.training.settings import TrainingSettings

GROUP = 8  # photographs a rank between notes of how far the labelling is


def grey_of(colour: Tensor) -> Tensor:
    """(3, H, W) uint8 -> (1, H, W) in [0, 1]."""
    return (colour.float() * (torch.tensor(LUMA) / 255.0)[:, None, None]).sum(dim=0, keepdim=True)


def pad_to_stride(image: Tensor, stride: int) -> Tensor:
    """(1, H, W) with its border repeated to the right and below, up to multiples of `stride`."""
    height, width = image.shape[-2:]
    return F.pad(image, (0, -width % stride, 0, -height % stride), mode="replicate")


def label_photograph(
    image: Tensor, kind: str, network: DenseNetwork, settings: TrainingSettings, generator: torch.Generator
) -> np.ndarray:
    """Keypoint labels of one grey photograph (1, H, W): (n, 3) float32 x, y, score; at most `labels_per_photograph`.

    kind: "corners" (reliability of raw patches), "adaptation" (paper step A), "reliability" (step C), or
    "adaptation-reliability": the two multiplied.
    """
    height, width = image.shape[-2:]
    if kind == "corners":
        logits, threshold = corner_strength(image), WEAKEST_CORNER
    else:
        logits, threshold = _network_logits(image, kind, network, settings, generator)
    mask = inside(pixel_grid(height, width), height, width, settings.label_border).reshape(height, width)
    detection = DetectionSettings(
        max_keypoints=settings.labels_per_photograph, threshold=threshold, nms_radius=settings.label_nms_radius
    )
    keypoints, scores = detect(logits[:height, :width], detection, mask.to(logits.device))
    return torch.cat((keypoints, scores[:, None]), dim=1).cpu().numpy()


def _network_logits(
    image: Tensor, kind: str, network: DenseNetwork, settings: TrainingSettings, generator: torch.Generator
) -> tuple[Tensor, float]:
    """A map (H, W) of logits whose maxima are the labels, and the probability below which they don't count."""
    adapts = settings.affine_adaptation and kind != "reliability"
    compares = kind != "adaptation"
    count = max(settings.adaptation_references * adapts, settings.reliability_references * compares)
    padded = pad_to_stride(image, network.stride)
    references = look_at_references(network, padded, count, generator)
    scores = adapted_scores(references, settings.label_border) if adapts else references.maps.score_map[0]
    threshold = settings.adaptation_threshold
    if compares:
        reliable = reliability(references, settings)
        share = reliable / (1 + reliable)  # in [0, 1), in the same order
        if kind == "reliability":
            scores, threshold = share, settings.reliability_threshold / (1 + settings.reliability_threshold)
        else:
            scores, threshold = scores * share, threshold / 2
    return scores.clamp(1e-6, 1 - 1e-6).logit(), threshold


def label_photographs(
    kind: str,
    network: DenseNetwork,
    photographs: Photographs,
    chosen: np.ndarray,
    settings: TrainingSettings,
    *,
    key: tuple[int, ...],
    file: Path,
    progress: Callable[[int], None] = lambda done: None,
    stop: Callable[[], bool] = lambda: False,
) -> int:
    """Write labels of the chosen photographs, (n, K, 3) with nan where there are fewer than K, to the .npy `file`.

    Goes on where an earlier call was killed, and asks `stop` now and then. Of several ranks each labels a share and the
    first one writes. Returns how many photographs, the first of the chosen, have their labels. Raises OutputError if
    there is no room for all, InputFileError if what an earlier call left is damaged.
    """
    shape = (len(chosen), settings.labels_per_photograph, 3)
    note = file.with_suffix(".json")
    done = _done(note) if file.is_file() else 0
    wait()
    labels = _labels_of(file, shape, begun=done > 0) if rank() == 0 else None
    network.eval()
    while done < len(chosen) and not (done and stop()):
        rows = range(done, min(done + GROUP * ranks(), len(chosen)))
        own = np.full((GROUP, *shape[1:]), np.nan, np.float32)
        with torch.inference_mode():
            for place, row in enumerate(rows[rank() :: ranks()]):
                generator = generator_of(*key, int(chosen[row]))
                found = label_photograph(grey_of(photographs[chosen[row]]), kind, network, settings, generator)
                own[place, : len(found)] = found
                progress(row + 1)
        together = gathered(torch.from_numpy(own)).transpose(0, 1).flatten(0, 1).numpy()  # photographs in their order
        done = rows.stop
        if labels is not None:
            labels[rows.start : rows.stop] = together[: len(rows)]
            _note(note, labels, done)
    wait()
    return done


def _done(note: Path) -> int:
    try:
        return int(json.loads(note.read_text(encoding="utf-8"))["done"])
    except FileNotFoundError:
        return 0
    except (ValueError, KeyError, TypeError) as error:
        raise InputFileError(f"{note}: damaged; delete it, and the photographs are labelled again") from error


def _labels_of(file: Path, shape: tuple[int, ...], *, begun: bool) -> np.memmap:
    """The labels as they are on disk, all of whose room is taken: a full one is noticed now, and kills nothing."""
    try:
        labels = np.lib.format.open_memmap(file, "r+" if begun else "w+", np.float32, shape)
        with file.open("r+b") as stream:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(stream.fileno(), 0, labels.offset + labels.nbytes)
    except OSError as error:
        raise OutputError(f"{file}: {write_reason(error)}") from error
    except (ValueError, EOFError) as error:
        raise InputFileError(f"{file}: damaged; delete it, and the photographs are labelled again") from error
    return labels


def _note(note: Path, labels: np.memmap, done: int) -> None:
    """Note how many of the labels are made, once these are in the file."""
    labels.flush()
    write_whole(note, json.dumps({"done": done}))
