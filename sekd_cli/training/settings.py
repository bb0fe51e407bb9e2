"""Everything that a training run depends on, in one flat, frozen, self-checking table; two presets; TOML in and out."""

import json
import tomllib
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from sekd_cli.errors import InputFileError, UsageError

FIRST_LABELS = ("corners", "reliability", "adaptation-reliability")
DESCRIPTOR_LOSSES = ("dual-softmax", "hardest-in-batch")
OWN_LESSONS = ("ranking_weight", "position_weight", "matching_weight", "selection_weight")
DETECTOR_TARGETS = ("gaussian", "pixel")
LEAST = {  # the smallest value, of these settings
    0: (
        *("seed", "minutes", "weight_decay", "learning_rate", "warmup_steps", "rotation", "label_border"),
        *("reliability_threshold", "label_nms_radius", "target_sigma", "focal_gamma", "detector_weight"),
        *("repeatability_weight", "detected_points", "random_points", "own_keypoints", "ranking_weight"),
        *("position_weight", "matching_weight", "selection_weight", "matching_scale", "similarity_scale"),
        *("descriptor_weight", "safe_radius", "triplet_ratio", "frozen_detector_weight", "frozen_descriptor_weight"),
    ),
    1: (
        *("rounds", "steps_per_update", "last_steps", "zoom", "stretch", "reliability_window"),
        *("reliability_window_stride", "adaptation_references", "reliability_references", "labels_per_photograph"),
    ),
    64: ("height", "width"),  # pixels
    96: ("photograph_size",),  # as `photographs.SHORTEST_EDGE`
}
MOST = {  # the largest value, of these settings
    360: ("rotation",),
    100: ("zoom", "stretch", "farthest"),  # beyond, float32 can't turn views back
    # beyond, no run ends, or fits into any memory
    1000: ("rounds", "adaptation_references", "reliability_references"),
    10_000: (
        *("batch_size", "height", "width", "photograph_size"),
        *("reliability_window", "reliability_window_stride", "label_border"),
    ),
    100_000: ("labels_per_photograph", "detected_points", "random_points", "own_keypoints"),
    1_000_000_000: ("steps_per_update", "last_steps", "warmup_steps"),
}
SHARES = (  # from 0 to 1
    *("average_decay", "any_rotation_share", "shift", "hidden_share", "parallax_share", "parallax", "exposed_share"),
    *("plain_share", "low_level_weight"),
)


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """The defaults train the compact network; `PRESETS["paper"]` is the published network and schedule."""

    network: str = "compact"
    seed: int = 0
    start: str = ""  # weights of an earlier run, from which this one goes on; none: random ones
    # the compact network without convolutions at 1/4 after the encoder; one that has them may start from its weights
    shallow: bool = False

    # schedule: rounds of labelling and updating (paper Sec. 3.1)
    rounds: int = 5
    alternate: bool = False  # True: descriptor, then detector, a frozen copy holding the other still, as in the paper
    # "reliability" is the paper's: of a random network; "adaptation-reliability" is for one that starts from weights
    first_labels: Literal["corners", "reliability", "adaptation-reliability"] = "corners"
    self_evolving: bool = True  # False: later rounds go on with the first round's labels, to see what relabelling gives
    steps_per_update: int = 2000
    last_steps: int = 3500  # of the last round's update, in which the learning rate falls
    minutes: float = 0.0  # by which the run ends: with shorter and fewer rounds, the last of them whole; 0: no limit
    photographs_per_round: float = 0.4  # share labelled and learned from in a round; the paper takes a fifth
    validation_share: float = 0.03  # of the photographs, held out (at most 128)

    # batches
    batch_size: int = 8  # pairs
    height: int = 256  # pixels of a view
    width: int = 320
    photograph_size: int = 640  # longer edge, pixels, at which photographs are kept

    # optimiser
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    warmup_steps: int = 200
    gradient_norm: float = 5.0  # largest; the rare batch of blank photographs must not undo a minute's work
    average_decay: float = 0.998  # of the running mean of the weights, which labels, is validated and shipped

    # views: the second of a pair relative to the first (paper Sec. 4.1: affine)
    closest: float = 0.6  # photograph pixels a view pixel: small photographs are looked at closely more often
    farthest: float = 1.1
    rotation: float = 50.0  # degrees, either way
    any_rotation_share: float = 0.12  # of the pairs, turned by any angle
    zoom: float = 1.8  # largest, in or out
    sharp_zoom: float = 0.0  # largest power of a zoom by which both views step back; 0.5: the closer one stays sharp
    stretch: float = 1.5  # largest, along any axis: a plane seen from the side
    shear: float = 20.0  # degrees, either way
    shift: float = 0.35  # largest, in widths of a view: where in one view a point lies must not tell where in the other
    tilt: float = 0.25  # largest change of depth across half a view: perspective
    other_surroundings: bool = True  # beyond a photograph's edge lies another one; else its last pixels, drawn out
    hidden_share: float = 0.0  # of the views, parts of which another photograph hides, as what is in front does
    parallax_share: float = 0.0  # of the pairs, in whose second view parts of the photograph move by their depth
    parallax: float = 0.08  # by how much at most, in longer edges of the photograph
    graded: bool = False  # each pair is changed by a random share of these ranges: many are mild, few are extreme
    exposed_share: float = 0.3  # of the views, exposed anew: what gets too bright is lost
    plain_share: float = 0.0  # of the pairs, those of one good camera: neither blurred, compressed nor noisy

    # affine adaptation (step A) and reliability (step C)
    adaptation_references: int = 5  # the paper takes 12 to 20
    reliability_references: int = 2
    reliability_window: int = 5  # positions along each side; the paper takes 7
    reliability_window_stride: int = 2
    low_level_weight: float = 0.5  # of the low-level feature's reliability; the rest is the descriptor's
    adaptation_threshold: float = 0.1  # keypoint probability averaged over the references
    reliability_threshold: float = 0.85
    label_nms_radius: int = 3  # pixels
    labels_per_photograph: int = 400
    label_border: int = 8  # pixels; a view of the photograph has no evidence beyond its edge

    # losses
    detector_target: Literal["gaussian", "pixel"] = "gaussian"
    target_sigma: float = 0.7  # pixels
    focal_gamma: float = 2.0
    detector_weight: float = 1.0  # of that focal loss; less leaves more to the lessons on own keypoints
    repeatability_weight: float = 0.1  # of the detector's repeatability beside the focal loss
    descriptor_loss: Literal["dual-softmax", "hardest-in-batch"] = "dual-softmax"
    detected_points: int = 256  # a pair, for the descriptor
    random_points: int = 128
    own_keypoints: int = 320  # a view, found as the step goes: rivals in the dual softmax, and what is ranked
    octaves: int = 1  # sizes of a view at which they are found, each half of the one before, as `extract --scales` does
    ranking_weight: float = 1.0  # of the scores' order by what will be matched
    position_weight: float = 3.0  # of the distance between the same keypoint in two views
    matching_weight: float = 1.0  # of the wrong matches expected among them, less the right ones
    selection_weight: float = 10.0  # of the wrong matches, less right ones, expected of the best of them
    matching_scale: float = 80.0  # inverse temperature of these matches
    similarity_scale: float = 20.0  # inverse temperature of the dual softmax
    descriptor_weight: float = 0.5  # of that loss; less leaves more to the lessons on own keypoints
    safe_radius: float = 6.0  # pixels; nearer points are neither the same nor different
    triplet_ratio: float = 0.85  # only points with d+ / d- above it count
    frozen_detector_weight: float = 1.0
    frozen_descriptor_weight: float = 0.1

    # the paper's ablations
    descriptor_repeatability: bool = True
    descriptor_distinctness: bool = True
    detector_repeatability: bool = True
    affine_adaptation: bool = True

    def __post_init__(self) -> None:
        smallest = 16 * 2 ** min(self.octaves, 4)  # pixels of a view: the compact network's stride, after all halvings
        checks = (
            (self.network in ("compact", "published"), "network: give compact or published"),
            (not self.shallow or self.network == "compact", "shallow: only the compact network can be"),
            (self.first_labels in FIRST_LABELS, f"first_labels: give one of {', '.join(FIRST_LABELS)}"),
            (self.descriptor_loss in DESCRIPTOR_LOSSES, f"descriptor_loss: give one of {', '.join(DESCRIPTOR_LOSSES)}"),
            (self.detector_target in DETECTOR_TARGETS, f"detector_target: give one of {', '.join(DETECTOR_TARGETS)}"),
            *(
                (abs(value) < 1e30, f"{name}: give a number that is finite in float32")
                for name, value in asdict(self).items()
                if isinstance(value, float)
            ),
            *(
                (getattr(self, name) >= least, f"{name}: give {least} or more")
                for least in LEAST
                for name in LEAST[least]
            ),
            *((getattr(self, name) <= most, f"{name}: give {most} or less") for most in MOST for name in MOST[most]),
            *((0 <= getattr(self, name) <= 1, f"{name}: give 0 to 1") for name in SHARES),
            (self.start.encode(errors="ignore").decode() == self.start, "start: give a path that is valid UTF-8"),
            (self.seed < 2**64, "seed: give less than 2^64"),
            (self.batch_size >= 2, "batch_size: give 2 or more; other photographs are the negatives"),
            (1 <= self.octaves <= 4, "octaves: give 1 to 4"),
            (
                self.height % smallest == 0 and self.width % smallest == 0,
                f"height, width: give multiples of {smallest}",
            ),
            (0 < self.photographs_per_round <= 1, "photographs_per_round: give a share, more than 0, at most 1"),
            (0 <= self.validation_share < 0.5, "validation_share: give 0 or more, less than 0.5"),
            (0.01 <= self.closest <= self.farthest, "closest, farthest: give 0.01 or more, the second not less"),
            (self.detected_points + self.random_points > 0, "detected_points, random_points: give 1 or more together"),
            (self.gradient_norm > 0, "gradient_norm: give more than 0"),
            (0 <= self.shear < 90, "shear: give 0 (none) or more, less than 90"),
            (0 <= self.adaptation_threshold < 1, "adaptation_threshold: give 0 or more, less than 1"),
            (self.label_nms_radius <= 100, "label_nms_radius: give 0 to 100"),
            (self.similarity_scale <= 100, "similarity_scale: give 0 to 100"),  # beyond, float32 has no odds left
            (0 <= self.sharp_zoom <= 0.5, "sharp_zoom: give 0 (none) to 0.5"),
            (not self.hidden_share or self.other_surroundings, "hidden_share: needs other_surroundings to be in front"),
            (0 <= self.tilt < 0.8, "tilt: give 0 (none) or more, less than 0.8"),
            (self.reliability_window % 2 == 1, "reliability_window: give an odd number"),
            (
                self.own_keypoints > 0 or not any(getattr(self, name) for name in OWN_LESSONS),
                f"{', '.join(OWN_LESSONS)}: these need own_keypoints",
            ),
            (
                self.descriptor_repeatability or self.descriptor_distinctness,
                "descriptor_repeatability, descriptor_distinctness: leave one on; without both, reliability is nothing",
            ),
        )
        for fine, message in checks:
            if not fine:
                raise UsageError(f"training settings: {message}")

    def rooted(self) -> "TrainingSettings":
        """These settings with the whole path of `start`, which is then the same from any working directory."""
        return replace(self, start=str(Path(self.start).resolve())) if self.start else self

    def without(self, *parts: str) -> "TrainingSettings":
        """These settings with parts of the method switched off, named as in the paper's ablations."""
        return settings_from({part.replace("-", "_"): False for part in parts}, self, "--without")

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        updates = 2 * self.rounds - 1 if self.alternate else self.rounds
        return (updates - 1) * self.steps_per_update + self.last_steps

    def as_toml(self) -> str:
        """The settings as TOML that `read_settings` reads back."""
        lines = (f"{key} = {_toml_value(value)}" for key, value in asdict(self).items())
        return "# settings of sekd train; see the comments in sekd_cli/training/settings.py\n" + "\n".join(lines) + "\n"


ABLATIONS = ("descriptor-repeatability", "descriptor-distinctness", "detector-repeatability", "affine-adaptation")

PRESETS = {
    "default": TrainingSettings(),
    "paper": TrainingSettings(  # paper Sec. 4.1; epochs become steps: ten of a fifth of the photographs an update
        network="published",
        rounds=5,
        alternate=True,
        first_labels="reliability",
        steps_per_update=800,
        last_steps=800,
        photographs_per_round=0.2,
        height=512,
        width=512,
        learning_rate=1e-4,
        weight_decay=1e-8,
        rotation=40.0,
        any_rotation_share=0.0,
        zoom=1.4,
        stretch=1.0,
        shear=40.0,
        shift=0.04,
        other_surroundings=False,
        tilt=0.0,
        adaptation_references=12,
        reliability_references=12,
        reliability_window=7,
        adaptation_threshold=0.46,
        labels_per_photograph=2000,
        label_border=12,
        detector_target="pixel",
        focal_gamma=1.0,
        repeatability_weight=1.0,
        descriptor_loss="hardest-in-batch",
        detected_points=1000,
        random_points=0,
        own_keypoints=0,
        ranking_weight=0.0,
        position_weight=0.0,
        matching_weight=0.0,
        selection_weight=0.0,
        descriptor_weight=1.0,
    ),
}


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # which JSON lets stand, TOML doesn't
    return repr(value)


def settings_from(changes: dict[str, Any], start: TrainingSettings, source: str) -> TrainingSettings:
    """`start` with some values changed; each must be known and of the right type (UsageError names it)."""
    kinds = {field.name: type(getattr(start, field.name)) for field in fields(start)}
    values: dict[str, Any] = {}
    for key, value in changes.items():
        if key not in kinds:
            raise UsageError(f"{source}: no such training setting: {key}")
        number = kinds[key] is float and isinstance(value, int) and not isinstance(value, bool)
        if type(value) is not kinds[key] and not number:
            raise UsageError(f"{source}: {key} is {value!r}, not of type {kinds[key].__name__}")
        try:
            values[key] = float(value) if number else value
        except OverflowError:
            raise UsageError(f"{source}: {key} is too large") from None
    return replace(start, **values)


def read_settings(path: Path) -> TrainingSettings:
    """Settings from a TOML file: a preset (`preset = "paper"`; default: "default") and what differs from it."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputFileError(f"{path}: no such file; give a TOML file or one of {', '.join(PRESETS)}") from error
    except (OSError, ValueError, RecursionError) as error:  # of tomllib, also for numbers of thousands of digits
        raise InputFileError(f"{path}: not a readable TOML file ({error})") from error
    preset = content.pop("preset", "default")
    if not isinstance(preset, str) or preset not in PRESETS:
        raise UsageError(f"{path}: no such preset: {preset!r}; give one of {', '.join(PRESETS)}")
    return settings_from(content, PRESETS[preset], str(path))
