"""Settings: frozen, keyword-only, self-checking. Each function takes the slice that it needs."""

from dataclasses import dataclass

from sekd_cli.errors import UsageError


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(message)


@dataclass(frozen=True, kw_only=True)
class DetectionSettings:
    """How keypoints are read off a score map (paper Sec. 3.4)."""

    max_keypoints: int = 2048  # best by score; 0 for all
    threshold: float | None = None  # keypoint probability; None for the network's own
    nms_radius: int = 4  # pixels; no two keypoints' pixels are nearer than this along both axes
    subpixel: bool = True

    def __post_init__(self) -> None:
        _check(self.max_keypoints >= 0, f"--max-keypoints {self.max_keypoints}: give 0 (all) or more")
        _check(self.threshold is None or 0 <= self.threshold < 1, f"--threshold {self.threshold}: give 0 up to 1")
        _check(0 <= self.nms_radius <= 100, f"--nms-radius {self.nms_radius}: give 0 to 100 pixels")


@dataclass(frozen=True, kw_only=True)
class MatchingSettings:
    """How descriptors are matched: mutual nearest neighbours, then these filters."""

    ratio: float = 1.0  # largest (distance to the best) / (distance to the second best), in both directions; 1 for off
    min_similarity: float = -1.0  # smallest cosine similarity
    temperature: float = 0.0  # of a dual softmax whose probabilities are the scores; 0: scores are cosine similarities
    min_probability: float = 0.0  # smallest dual-softmax probability

    def __post_init__(self) -> None:
        _check(0 < self.ratio <= 1, f"--ratio {self.ratio}: give more than 0, at most 1 (off)")
        _check(-1 <= self.min_similarity <= 1, f"--min-similarity {self.min_similarity}: give -1 (off) to 1")
        _check(
            self.temperature == 0 or 0.02 <= self.temperature <= 10,  # less would underflow float32
            f"--dual-softmax {self.temperature}: give a temperature of 0.02 to 10",
        )
        _check(0 <= self.min_probability <= 1, f"--min-probability {self.min_probability}: give 0 (off) to 1")
        _check(
            self.min_probability == 0 or self.temperature > 0,
            f"--min-probability {self.min_probability}: needs --dual-softmax",
        )
