"""One pair's matches and the HDF5 group that keeps them, in hloc's layout.

A group holds `matches0` (N0,) int32, the match of each keypoint of the first image or -1, and `matching_scores0` (N0,)
float32; where the pair was verified and a model found, also that, (3, 3) float64, under its name (`homography`,
`fundamental`, `essential`); where its matches were aligned, what came of it, `offsets`, `affines` and `correlations`
(see `patch_alignment.Alignment`), a row for each match, in the order of the first image's keypoints; where rotations
were tried, in the attribute `turn`, by how many quarters counter-clockwise the second image is to be turned to lie as
the first.
"""

from dataclasses import dataclass

import h5py
import numpy as np

from sekd_cli.config import MODELS
from sekd_cli.hdf5_file import add_attribute, check_arrays, read_arrays, write_arrays
from sekd_cli.patch_alignment import Alignment


@dataclass(frozen=True, kw_only=True)
class StoredMatches:
    """The matches of one pair of images."""

    matches0: np.ndarray  # (N0,) int32, each keypoint's match in the second image, -1 for none
    scores0: np.ndarray  # (N0,) float32, 0 for none
    model_name: str | None = None  # of MODELS, where one was fitted; then matches0 holds its inliers alone
    model: np.ndarray | None = None  # (3, 3) float64; see `verification.verify` for its meaning
    turn: int | None = None  # of the four that were tried: the second image turned by so many quarters fits best
    alignment: Alignment | None = None  # of the matches, in the order of `indices`, where they were aligned

    def indices(self) -> np.ndarray:
        """(M, 2) int64: keypoints of the first image, in order, and of the second."""
        first = np.flatnonzero(self.matches0 >= 0)
        return np.stack((first, self.matches0[first].astype(np.int64)), axis=1)

    def reversed(self, count1: int) -> "StoredMatches":
        """The same matches seen from the second image, which has `count1` keypoints."""
        pairs = self.indices()
        matches, scores = np.full(count1, -1, dtype=np.int32), np.zeros(count1, dtype=np.float32)
        matches[pairs[:, 1]], scores[pairs[:, 1]] = pairs[:, 0], self.scores0[pairs[:, 0]]
        model = self.model
        if model is not None:
            model = np.linalg.inv(model) if self.model_name == "homography" else model.T
        turn = None if self.turn is None else -self.turn % 4
        alignment = self.alignment and self.alignment.reversed().only(np.argsort(pairs[:, 1]))
        return StoredMatches(
            matches0=matches,
            scores0=scores,
            model_name=self.model_name,
            model=model,
            turn=turn,
            alignment=alignment,
        )


def write_group(group: h5py.Group, matches: StoredMatches) -> None:
    """Put the matches of a pair into its group, empty until then."""
    arrays = {
        "matches0": matches.matches0.astype(np.int32, copy=False),
        "matching_scores0": matches.scores0.astype(np.float32, copy=False),
    }
    if matches.model_name is not None and matches.model is not None:
        arrays[matches.model_name] = matches.model.astype(np.float64, copy=False)
    if matches.alignment is not None:
        arrays |= {name: values.astype(np.float32, copy=False) for name, values in matches.alignment._asdict().items()}
    write_arrays(group, arrays)
    if matches.turn is not None:
        add_attribute(group, "turn", matches.turn)


def read_group(group: h5py.Group) -> StoredMatches:
    """The matches in a pair's group. Raises ValueError if they are none."""
    arrays = read_arrays(group, ("matches0", "matching_scores0", *MODELS, *Alignment._fields))
    check_arrays(group, arrays)
    matches0 = arrays["matches0"]
    scores0 = arrays.get("matching_scores0", np.ones(matches0.shape))
    if matches0.ndim != 1 or matches0.dtype.kind not in "iu" or scores0.shape != matches0.shape:
        raise ValueError(f"matches0 of {group.name} is no list of matches")
    if not np.array_equal(indices := matches0.astype(np.int32), matches0):
        raise ValueError(f"matches0 of {group.name} has numbers of no keypoint")
    name = next((name for name in MODELS if name in arrays), None)
    aligned = [arrays[field].astype(np.float32) for field in Alignment._fields if field in arrays]
    count = int((indices >= 0).sum())
    if aligned and [one.shape for one in aligned] != [(count, 2), (count, 2, 2), (count,)]:
        raise ValueError(f"the alignment in {group.name} is not that of {count} matches")
    return StoredMatches(
        matches0=indices,
        scores0=scores0.astype(np.float32),
        model_name=name,
        model=None if name is None else arrays[name].astype(np.float64).reshape(3, 3),
        turn=int(group.attrs["turn"]) if "turn" in group.attrs else None,
        alignment=Alignment(*aligned) if aligned else None,
    )
