"""Settings: frozen, keyword-only, self-checking. Each function takes the slice that it needs."""

import math
from dataclasses import dataclass, replace

from sekd_cli.errors import UsageError

DEFAULT_MAX_PIXELS = 250_000_000  # above every camera's; a small file can claim billions and fill the memory
LARGEST_SCALE = 4  # enlarged further a photograph shows nothing but its interpolation


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(message)


@dataclass(frozen=True, kw_only=True)
class DetectionSettings:
    """How keypoints are read off a score map (paper Sec. 3.4)."""

    max_keypoints: int = 2048  # best by score; 0 for all
    threshold: float | None = None  # keypoint probability; None for the network's own
    nms_radius: int | None = None  # pixels, along both axes, within which only the best is kept; None likewise
    subpixel: bool = True

    def __post_init__(self) -> None:
        _check(self.max_keypoints >= 0, f"--max-keypoints {self.max_keypoints}: give 0 (all) or more")
        _check(
            self.threshold is None or 0 <= self.threshold < 1,
            f"--threshold {self.threshold}: give 0 or more, less than 1",
        )
        radius_fits = self.nms_radius is None or 0 <= self.nms_radius <= 100
        _check(radius_fits, f"--nms-radius {self.nms_radius}: give 0 to 100 pixels")

    def completed(self, *, threshold: float, nms_radius: int) -> "DetectionSettings":
        """These settings, a network's own values where none were given."""
        return replace(
            self,
            threshold=threshold if self.threshold is None else self.threshold,
            nms_radius=nms_radius if self.nms_radius is None else self.nms_radius,
        )


AUTO = "auto"  # halved, and halved again, down to the smallest size of use


@dataclass(frozen=True, kw_only=True)
class ViewSettings:
    """At what sizes, and how turned, the network sees an image."""

    max_size: int = 1600  # longer edge in pixels; 0 for no limit
    scales: tuple[float, ...] | str | None = None  # of what `max_size` leaves, or AUTO; None: the network's own
    rotations: bool = False  # upright, and turned by one, two and three quarters

    def __post_init__(self) -> None:
        _check(self.max_size >= 0, f"--max-size {self.max_size}: give 0 (no limit) or more pixels")
        if self.scales is None or self.scales == AUTO:
            return
        fit = (
            isinstance(self.scales, tuple) and self.scales and all(0 < scale <= LARGEST_SCALE for scale in self.scales)
        )
        given = self.scales if isinstance(self.scales, str) else ",".join(f"{scale:g}" for scale in self.scales)
        _check(bool(fit), f"--scales {given}: give auto, or numbers above 0, at most {LARGEST_SCALE}, such as 1,0.5")

    def completed(self, *, scales: tuple[float, ...]) -> "ViewSettings":
        """These settings, a network's own scales where none were given."""
        return replace(self, scales=scales) if self.scales is None else self


def parse_scales(text: str | None) -> tuple[float, ...] | str | None:
    """`auto`, or numbers with commas between; None stays None. Raises UsageError."""
    if text is None or text == AUTO:
        return text
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise UsageError(f"--scales {text}: give auto, or numbers with commas between, such as 1,0.5") from None


@dataclass(frozen=True, kw_only=True)
class MatchingSettings:
    """How descriptors are matched: mutual nearest neighbours, then these filters."""

    ratio: float = 1.0  # largest (distance to the best) / (distance to the second best), in both directions; 1 for off
    min_similarity: float = -1.0  # smallest cosine similarity
    temperature: float = 0.0  # of a dual softmax whose probabilities are the scores; 0: scores are cosine similarities
    min_probability: float = 0.0  # smallest dual-softmax probability
    rotations: bool = False  # of the second image's four quarter turns, the one with the most matches

    def __post_init__(self) -> None:
        _check(0 < self.ratio <= 1, f"--ratio {self.ratio}: give more than 0, at most 1 (off)")
        _check(-1 <= self.min_similarity <= 1, f"--min-similarity {self.min_similarity}: give -1 (off) to 1")
        _check(
            self.temperature == 0 or 0.03 <= self.temperature <= 10,  # exp(-2 / 0.03) is still above float32's least
            f"--dual-softmax {self.temperature}: give 0 (off), or a temperature of 0.03 to 10",
        )
        _check(0 <= self.min_probability <= 1, f"--min-probability {self.min_probability}: give 0 (off) to 1")
        _check(
            self.min_probability == 0 or self.temperature > 0,
            f"--min-probability {self.min_probability}: needs --dual-softmax",
        )


MODELS = ("homography", "fundamental", "essential")  # of the geometry of a pair


@dataclass(frozen=True, kw_only=True)
class VerificationSettings:
    """Which matches agree on the geometry of a pair (OpenCV's USAC)."""

    model: str  # one of MODELS
    threshold: float  # largest error of an inlier, pixels
    min_inliers: int = 15  # with fewer, or no more than chance has, the pair keeps no match; 0 keeps any model
    camera: tuple[float, ...] | None = None  # fx, fy, cx, cy in pixels, or one focal length and the image's centre

    def __post_init__(self) -> None:
        _check(0 < self.threshold <= 1000, f"--threshold {self.threshold:g}: give more than 0, at most 1000 pixels")
        _check(self.min_inliers >= 0, f"--min-inliers {self.min_inliers}: give 0 or more")
        given = ",".join(f"{value:g}" for value in self.camera or ())
        _check(
            self.camera is None
            or (len(self.camera) in {1, 4} and all(map(math.isfinite, self.camera)) and min(self.camera[:2]) > 0),
            f"--camera {given}: give F, or FX,FY,CX,CY, in pixels; focal lengths are positive",
        )
