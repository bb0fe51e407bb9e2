"""Which points of a plane are nearest to others: by a tree, as comparing all with all grows with the square."""

import cv2
import numpy as np

Parameters = dict[str, bool | int | float | str]
TREE: Parameters = {"algorithm": 4, "leaf_max_size": 10}  # FLANN's one k-d tree, which can be searched to the end
TO_THE_END: Parameters = {"checks": -1, "eps": 0.0, "sorted": True}


def nearest(places: np.ndarray, points: np.ndarray, count: int) -> np.ndarray:
    """Rows of the `count` points (M >= count, 2) nearest to each place (N, 2), nearest first, (N, count) int32.

    All numbers are finite, and their squares float32's; of others it says anything.
    """
    if not len(places):
        return np.empty((0, count), dtype=np.int32)
    of, among = (np.ascontiguousarray(xy, dtype=np.float32) for xy in (places, points))
    rows, _ = cv2.flann.Index(among, TREE).knnSearch(of, count, params=TO_THE_END)
    return np.asarray(rows)
