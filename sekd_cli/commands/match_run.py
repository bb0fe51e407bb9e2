"""What `sekd match` does: read the pairs, open the files, match, tell how it went."""

import logging
import os
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import click

from sekd_cli.commands.failure_list import FailureList, same_file
from sekd_cli.commands.progress import progress_bar
from sekd_cli.config import MatchingSettings, VerificationSettings
from sekd_cli.cores import available_cores
from sekd_cli.counting import counted
from sekd_cli.device import matching_device, resolve_device
from sekd_cli.errors import SOME_FAILED, ImageError, InputFileError, NothingToDoError, UsageError
from sekd_cli.export.layout_folder import MATCH_FILES, layout_folder
from sekd_cli.feature_cache import CameraOf, Plan, plan
from sekd_cli.feature_file import FeatureReader
from sekd_cli.focal_length import read_focal_length
from sekd_cli.match_file import MatchWriter, check_flat_names, match_attributes
from sekd_cli.match_pipeline import PairMatcher, PipelineSettings, match_all
from sekd_cli.match_writing import Outcome
from sekd_cli.pairs import read_pairs
from sekd_cli.shards import Shard, parse_shard
from sekd_cli.stored_features import StoredFeatures
from sekd_cli.verification import Camera, camera_of, verification_settings
from sekd_cli.workers import interrupts_later, workers

logger = logging.getLogger(__name__)

GPU_THREADS = 4  # batches whose kernels and copies overlap; more only take memory, but where the CPU verifies
MOST_PROCESSES = 16  # by default: one writes what they match, and they share the memory for features
MOST_CACHE = 1e6  # GB: more than any machine has
GPU_BATCH_VALUES = 1 << 25  # similarities at once: 128 MB, eight pairs of 2048 keypoints


@dataclass(frozen=True, kw_only=True)
class MatchOptions:
    """What the command line of `sekd match` gives; its help tells what each means."""

    pairs: Path
    features: Path
    output: Path
    ratio: float
    min_similarity: float
    dual_softmax: float | None
    min_probability: float
    rotations: bool
    verify: str | None
    threshold: float | None
    min_inliers: int | None
    refine: bool
    camera: str | None
    images: Path | None
    layout: str
    overwrite: bool
    update: bool
    shard: str | None
    failures: Path | None
    device: str
    threads: int | None
    cache: float

    def __post_init__(self) -> None:
        if self.verify is None and (self.threshold, self.min_inliers, self.refine) != (None, None, False):
            raise UsageError("--threshold, --min-inliers and --refine: only with --verify")
        if self.verify != "essential" and self.camera is not None:
            raise UsageError("--camera: only with --verify essential")
        if self.verify != "essential" and not self.refine and self.images is not None:
            raise UsageError("--images: only with --refine or --verify essential")
        if self.refine and self.images is None:
            raise UsageError("--refine: give the folder of the images with --images")
        if self.verify == "essential" and self.camera is None and self.images is None:
            raise UsageError("--verify essential: give focal lengths with --camera, or --images to find them in EXIF")
        if same_file(self.output, self.features):
            raise UsageError(f"-o {self.output}: is the feature file; give another output")
        for what, path in (("feature", self.features), ("pairs", self.pairs), ("match", self.output)):
            if self.failures is not None and same_file(self.failures, path):
                raise UsageError(f"--failures {self.failures}: is the {what} file; give another")
        if not self.cache <= MOST_CACHE:
            raise UsageError(f"--cache {self.cache:g}: give GB of memory, such as 4")


def run(options: MatchOptions) -> int:
    """Match; prints the path of the match file and returns the exit code."""
    matching = MatchingSettings(
        ratio=options.ratio,
        min_similarity=options.min_similarity,
        temperature=options.dual_softmax or 0.0,
        min_probability=options.min_probability,
        rotations=options.rotations,
    )
    verification = _verification(options)
    shard = Shard() if options.shard is None else parse_shard(options.shard)
    decisive = _decisive(matching, verification, shard, refine=options.refine)
    device = matching_device(asked := resolve_device(options.device))
    if device != asked and options.device != "auto":
        logger.warning("--device %s: matched on the CPU, as torch bears no threads on an Apple GPU", options.device)
    cores = min(MOST_PROCESSES, available_cores())
    settings = PipelineSettings(
        device=device,
        threads=options.threads or (GPU_THREADS if device.type != "cpu" and not verification else cores),
        update=options.update,
        batch_values=0 if device.type == "cpu" else GPU_BATCH_VALUES,
    )
    folder = layout_folder(options.output, options.layout, MATCH_FILES, sharded=shard.count > 1)
    with FeatureReader(options.features) as features:
        work = _plan(options, shard, features)
        if folder is not None:
            pairs = ((work.names[first], work.names[second]) for first, second in work.pairs.tolist())
            folder.check(features.names(), pairs, overwrite=options.overwrite)
    processes = min(settings.threads, len(work.pairs)) if device.type == "cpu" else 0
    share = int(options.cache * 1e9) // max(1, processes)  # of shards there may be more than pairs
    matcher = PairMatcher(
        options.features,
        share,
        matching,
        verification,
        camera_of=_cameras(verification, options.images),
        folder=options.images if options.refine else None,
    )
    with (
        interrupts_later(),
        _open_features(options) as features,
        workers(processes, matcher) as others,
        MatchWriter(options.output, match_attributes(features, decisive), overwrite=options.overwrite) as writer,
        _Report(options.failures, refine=options.refine) as report,
        progress_bar("match", len(work.pairs), "pairs") as bar,
    ):
        for outcome in match_all(work, features, writer, settings, matcher=matcher, workers=others):
            report.add(outcome)
            bar.advance(note=f"{report.failed} failed" if report.failed else None)
    exit_code = report.exit_code()
    if folder is not None:
        folder.write_matches(options.features)
    click.echo(os.fsencode(options.output if folder is None else folder.path))
    return exit_code


def _decisive(
    matching: MatchingSettings, verification: VerificationSettings | None, shard: Shard, *, refine: bool
) -> dict[str, Any]:
    """All that decides the numbers in a match file, but for the features."""
    decisive = asdict(matching) | ({"model": None} if verification is None else asdict(verification))
    if verification is not None:
        decisive["verification"] = 133  # the experiment that last changed what is kept, in docs/EXPERIMENTS.md
    if refine:
        decisive["refine"] = 132  # likewise
    decisive["shard"] = str(shard)  # so that merging notices one that is missing or double
    return decisive


def _open_features(options: MatchOptions) -> FeatureReader:
    """The feature file. Raises InputFileError if it can't be read, or lacks what --rotations or --refine needs."""
    features = FeatureReader(options.features)
    if options.refine:
        features.refuse_refined()
    if options.rotations and not features.has_turns:
        features.close()
        raise InputFileError(
            f"{options.features}: holds no descriptors of turned photographs; run sekd extract --rotations, "
            "or match without --rotations"
        )
    return features


def _plan(options: MatchOptions, shard: Shard, features: FeatureReader) -> Plan:
    """The pairs of this shard. Raises NothingToDoError if all shards together have none."""
    source = "standard input" if str(options.pairs) == "-" else str(options.pairs)
    work = plan(read_pairs(options.pairs), features.own_name)
    if not len(work.pairs):
        raise NothingToDoError(f"{source}: no pairs of two different images; give two names a line")
    check_flat_names(work.names)
    if left_out := work.repeated + work.with_itself:
        logger.info("%s: %s left out, repeated or of an image with itself", source, counted(left_out, "pair"))
    count = len(work.pairs)
    first, end = (count * number // shard.count for number in (shard.number - 1, shard.number))
    return work._replace(pairs=work.pairs[first:end])  # neighbours in the list share images, so not every n-th


def _verification(options: MatchOptions) -> VerificationSettings | None:
    if options.verify is None:
        return None
    try:
        camera = None if options.camera is None else tuple(float(value) for value in options.camera.split(","))
    except ValueError:
        raise UsageError(f"--camera {options.camera}: give F, or FX,FY,CX,CY, in pixels") from None
    return verification_settings(options.verify, options.threshold, options.min_inliers, camera)


def _cameras(verification: VerificationSettings | None, images: Path | None) -> CameraOf:
    """Where the cameras of essential matrices come from."""

    def find(name: str, features: StoredFeatures) -> Camera | None:
        if verification is None or verification.model != "essential":
            return None
        if verification.camera is not None:
            return camera_of(verification.camera, features.image_size)
        focal_length = read_focal_length((images or Path()) / name, features.stated_size)
        if focal_length is None:
            raise ImageError(f"{name}: no focal length in EXIF data; give --camera")
        return camera_of((focal_length,), features.image_size)

    return find


class _Report:
    """What was done, what not and why; written to `failures_path` as it happens, told at the end."""

    def __init__(self, failures_path: Path | None, *, refine: bool) -> None:
        self.done = self.skipped = self.failed = self.matches = self.aligned = 0
        self._reasons: set[str] = set()  # for which pairs failed
        self._more: Counter[str] = Counter()  # pairs whose reason was told of another, and names neither of its images
        self._refine = refine
        self._start = time.monotonic()
        self._list = FailureList(failures_path)

    def add(self, outcome: Outcome) -> None:
        """Count a pair."""
        if outcome.failure is not None:
            self.failed += 1
            level = logging.DEBUG if outcome.failure in self._reasons else logging.ERROR  # of an image in many pairs
            logger.log(level, "%s and %s: %s", *outcome.pair, outcome.failure)
            if outcome.failure in self._reasons and not any(name in outcome.failure for name in outcome.pair):
                self._more[outcome.failure] += 1
            self._reasons.add(outcome.failure)
            self._list.add({"pair": outcome.pair, "reason": outcome.failure})
        elif outcome.skipped:
            self.skipped += 1
        else:
            self.done += 1
            self.matches += outcome.matches
            self.aligned += outcome.aligned
            logger.debug("%s and %s: %s", *outcome.pair, counted(outcome.matches, "match"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._list.close()
        for reason, count in self._more.items():
            logger.error("%s: %s", counted(count, "more pair"), reason)
        seconds = max(time.monotonic() - self._start, 1e-9)
        skipped = f", {self.skipped} done before" if self.skipped else ""
        mean = f"; {counted(self.matches, 'match')}, {self.matches / self.done:.0f} a pair" if self.done else ""
        mean += f", {self.aligned:,} of them aligned" if self.done and self._refine else ""
        rate = f", {self.done / seconds:.1f} pairs/s" if self.done else ""
        reasons = f" ({counted(len(self._reasons), 'reason')}, told once)" if self.failed > len(self._reasons) else ""
        logger.info("%s done%s, %d failed%s%s%s", counted(self.done, "pair"), skipped, self.failed, reasons, mean, rate)

    def exit_code(self) -> int:
        """0, or 1 if some failed. Raises NothingToDoError if no pair could be matched."""
        if self.failed and not self.done and not self.skipped:
            raise NothingToDoError("no pair could be matched; the reasons are above")
        return SOME_FAILED if self.failed else 0
