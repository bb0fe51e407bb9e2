"""One image's features and the HDF5 group that keeps them, in hloc's layout.

A group holds `keypoints` (N, 2) float32, `scores` (N,) float32, `descriptors` (D, N) float32 or float16, `image_size`
(2,) int64 (width, height), `scales` (N,) float32 and, of refined keypoints, `keypoints_found` (N, 2) float32. Only one
whose attribute `complete` is true counts as done: it is written last. Groups of other tools that hold `keypoints` and
`descriptors` are read as well; their keypoints may have more columns (scale, angle), which are left out.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from sekd_cli.errors import InputFileError
from sekd_cli.hdf5_file import (
    MAXIMUM_VALUES,
    add_attribute,
    attribute,
    check_arrays,
    member,
    read_arrays,
    read_numbers,
    write_arrays,
)

FARTHEST = 1e8  # pixels
FOUND = "keypoints_found"  # (N, 2): where they were before they were refined
DATASETS = ("keypoints", "scores", "descriptors", "image_size", "scales", FOUND)
SIZE_GUESSED = "image_size_guessed"  # attribute of a group whose `image_size` is there for tools that ask for one
TURNED = "descriptors_turned"  # (3, D, N): of the upright image turned counter-clockwise by 1, 2 and 3 quarters
TURNED_CHECKSUM = "crc32_turned"  # of its own, as most readers leave them


@dataclass(frozen=True, kw_only=True)
class StoredFeatures:
    """The features of one image as a file keeps them, best first."""

    keypoints: np.ndarray  # (N, 2) float32, x and y in pixels of the stored image
    scores: np.ndarray  # (N,) float32, descending; ones where the file has none
    descriptors: np.ndarray  # (N, D) float32; rows
    image_size: tuple[int, int]  # width, height
    size_stated: bool = True  # False: nothing told the size, so it is the smallest that holds all keypoints
    scales: np.ndarray | None = None  # (N,) float32, pixels of the stored image per pixel that the network saw
    turned: np.ndarray | None = None  # (3, N, D) float32, descriptors of the image turned by 1, 2, 3 quarters
    found: np.ndarray | None = None  # (N, 2) float32, where keypoints were before they were refined, if they are

    def __len__(self) -> int:
        return len(self.keypoints)

    @property
    def stated_size(self) -> tuple[int, int] | None:
        """`image_size`, None where it is a guess."""
        return self.image_size if self.size_stated else None


class Source(NamedTuple):
    """By what a changed image (or its mask) is noticed: sizes in bytes, times in nanoseconds."""

    size: int
    modified: int
    mask_size: int = -1  # -1: no mask
    mask_modified: int = -1


LATEST = 2**63 - 1  # ns, in the year 2262: what HDF5 can hold; a file system's clock may go on


def source_of(path: Path, mask: Path | None = None) -> Source:
    """The state of an image file and of its mask. Raises OSError."""
    image = path.stat()
    if mask is None:
        return Source(image.st_size, _modified(image))
    status = mask.stat()
    return Source(image.st_size, _modified(image), status.st_size, _modified(status))


def _modified(status: os.stat_result) -> int:
    return min(status.st_mtime_ns, LATEST)


def is_image(group: h5py.Group, *, own: bool) -> bool:
    """Whether a group holds an image's complete features; in a file of another tool (`own` false) all that do."""
    if own:
        return bool(attribute(group, "complete", False))
    return all(isinstance(member(group, name), h5py.Dataset) for name in ("keypoints", "descriptors"))


def write_group(group: h5py.Group, features: StoredFeatures, source: Source | None, descriptor_dtype: str) -> None:
    """Put the features of an image into its group, empty until then; `complete` last."""
    arrays = {
        "keypoints": np.asarray(features.keypoints, dtype=np.float32),
        "scores": np.asarray(features.scores, dtype=np.float32),
        "descriptors": np.ascontiguousarray(features.descriptors.T, dtype=descriptor_dtype),
        "image_size": np.asarray(features.image_size, dtype=np.int64),
    }
    if features.scales is not None:
        arrays["scales"] = np.asarray(features.scales, dtype=np.float32)
    if features.found is not None:
        arrays[FOUND] = np.asarray(features.found, dtype=np.float32)
    write_arrays(group, arrays)
    if features.scales is not None:
        uncertainty = float(np.mean(features.scales)) if len(features.scales) else 1.0
        add_attribute(group["keypoints"], "uncertainty", uncertainty)
    if features.turned is not None:
        turned = np.ascontiguousarray(features.turned.swapaxes(1, 2), dtype=descriptor_dtype)
        write_arrays(group, {TURNED: turned}, TURNED_CHECKSUM)
    if not features.size_stated:
        add_attribute(group, SIZE_GUESSED, True)
    if source is not None:
        add_attribute(group, "source", np.asarray(source, dtype=np.int64))
    add_attribute(group, "complete", True)


def read_group(group: h5py.Group, where: str, *, turned: bool) -> StoredFeatures:
    """The features in an image's group; `turned`: at other turns too. For damage InputFileError, ValueError."""
    arrays = read_arrays(group, DATASETS)
    check_arrays(group, arrays)
    with np.errstate(over="ignore"):  # found below
        floats = {name: values.astype(np.float32, copy=False) for name, values in arrays.items()}
    keypoints, descriptors = floats["keypoints"], floats["descriptors"]
    if keypoints.ndim != 2 or keypoints.shape[1] < 2 or descriptors.ndim != 2:
        shapes = f"keypoints {keypoints.shape} and descriptors {descriptors.shape}, not (N, 2), (D, N)"
        raise InputFileError(f"{where}: {shapes}; mend the file")
    keypoints = keypoints[:, :2]
    if not are_places(keypoints):
        raise InputFileError(f"{where}: keypoints that are not finite, or in no image; extract it again")
    count = len(keypoints)
    scores, scales = floats.get("scores", np.ones(count, dtype=np.float32)), floats.get("scales")
    if descriptors.shape[1] != count == len(descriptors):
        raise InputFileError(f"{where}: descriptors {descriptors.shape}, not (D, N) of N keypoints; transpose them")
    if descriptors.shape[1] != count or scores.shape != (count,) or (scales is not None and scales.shape != (count,)):
        raise InputFileError(f"{where}: not as many descriptors or scores as its {count} keypoints; extract it again")
    found = floats.get(FOUND)
    if found is not None and (found.shape != keypoints.shape or not are_places(found)):
        raise InputFileError(f"{where}: {FOUND} {found.shape} are not those of {count} keypoints; refine it again")
    others = _read_turned(group, where, descriptors.shape) if turned and TURNED in group else None
    return StoredFeatures(
        keypoints=keypoints,
        scores=scores,
        descriptors=np.ascontiguousarray(descriptors.T),
        image_size=smallest_size(keypoints) if (size := arrays.get("image_size")) is None else _two(size, where),
        size_stated=size is not None and not attribute(group, SIZE_GUESSED, False),
        scales=scales,
        turned=others,
        found=found,
    )


def _read_turned(group: h5py.Group, where: str, shape: tuple[int, ...]) -> np.ndarray:
    """(3, N, D) beside descriptors of `shape` (D, N)."""
    turned = read_numbers(group, TURNED)
    check_arrays(group, {TURNED: turned}, TURNED_CHECKSUM)
    if turned.shape != (3, *shape):
        raise InputFileError(f"{where}: {TURNED} {turned.shape} beside descriptors {shape}; extract it again")
    return np.ascontiguousarray(turned.swapaxes(1, 2), dtype=np.float32)


def are_places(keypoints: np.ndarray) -> bool:
    """Whether keypoints (N, 2) may be in an image: numbers, none too large to reckon with."""
    return bool((np.abs(keypoints) <= FARTHEST).all())


def smallest_size(keypoints: np.ndarray) -> tuple[int, int]:
    """Width and height of the smallest image that has all keypoints (N, 2)."""
    corner = keypoints.max(axis=0) + 0.5 if len(keypoints) else np.zeros(2)
    width, height = np.ceil(corner.clip(0, MAXIMUM_VALUES)).astype(int)
    return int(width), int(height)


def _two(image_size: np.ndarray, where: str) -> tuple[int, int]:
    if image_size.shape != (2,):
        raise InputFileError(f"{where}: image_size is {image_size.shape}, not width and height; extract it again")
    return int(image_size[0]), int(image_size[1])
