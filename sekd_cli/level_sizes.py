"""The sizes at which the network sees a photograph, and at which it saw one."""

import math

import numpy as np

from sekd_cli.config import DEFAULT_MAX_PIXELS, ViewSettings

SMALLEST_SIDE = 128  # pixels; `auto` halves while both sides have so many
LONGEST = 2**15 - 2  # pixels of an edge: OpenCV samples no more


def level_sizes(width: int, height: int, settings: ViewSettings) -> list[tuple[int, int]]:
    """Width, height of every level, each once, largest first: the scales of what `max_size` leaves of an image.

    None is enlarged beyond `max_size`, nor beyond the pixels that an image may have by default.
    """
    longer = max(width, height)
    most = settings.max_size / longer if settings.max_size else math.inf
    base = min(1.0, most)
    most = min(most, max(base, (DEFAULT_MAX_PIXELS / (width * height)) ** 0.5))
    if isinstance(settings.scales, str):  # AUTO
        factors = [base]
        while min(width, height) * factors[-1] / 2 >= SMALLEST_SIDE:
            factors.append(factors[-1] / 2)
    else:
        factors = [min(base * scale, most) for scale in settings.scales or (1.0,)]
    sizes = {(max(1, round(width * factor)), max(1, round(height * factor))) for factor in factors}
    return sorted(sizes, reverse=True)


def largest_size(width: int, height: int, settings: ViewSettings) -> tuple[int, int]:
    """Width, height of the largest level: more pixels of an image aren't needed."""
    return level_sizes(width, height, settings)[0]


def finest_of(scales: np.ndarray | None) -> float | None:
    """The least of the scales (N,) of keypoints, pixels of the file per pixel that the network saw; None without any.

    Other tools' may be 0, or no numbers.
    """
    known = np.empty(0) if scales is None else scales[scales > 0]
    return float(known.min()) if len(known) else None


def pixel_size(size: tuple[int, int], finest: float | None) -> float:
    """How many pixels of a file of a size (width, height) the finest has that the network saw, along an edge."""
    if min(size) < 1:  # a guess, from no keypoints
        return 1.0
    return max(size) / max(largest_size(*size, views_as_seen(size, finest)))


def views_as_seen(size: tuple[int, int], finest: float | None) -> ViewSettings:
    """How a photograph of a size (width, height) is resized to the finest at which it was seen."""
    if finest is None or finest > max(size):
        return ViewSettings(scales=(1.0,))
    return ViewSettings(max_size=min(round(max(size) / finest), LONGEST), scales=(1.0,))
