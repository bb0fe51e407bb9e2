"""What `sekd extract` does: find the images, set up the network and the file, extract, tell how it went."""

import logging
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import click
import torch

from sekd_cli.batch_extraction import BatchExtractor, Job
from sekd_cli.commands.failure_list import FailureList, same_file
from sekd_cli.commands.progress import progress_bar
from sekd_cli.config import DetectionSettings, ViewSettings, parse_scales
from sekd_cli.cores import available_cores
from sekd_cli.counting import counted
from sekd_cli.detection import EDGE
from sekd_cli.device import keep_freed_memory, resolve_device, set_threads, wanted_threads
from sekd_cli.errors import SOME_FAILED, NothingToDoError, OutputError, UsageError
from sekd_cli.export.layout_folder import layout_folder
from sekd_cli.export.layouts import FEATURE_FILES
from sekd_cli.extraction import Extractor
from sekd_cli.extraction_pipeline import Outcome, PipelineSettings, extract_all
from sekd_cli.feature_file import ChangedImageError, FeatureWriter, file_attributes
from sekd_cli.image_opening import NOWHERE
from sekd_cli.image_search import find_images, given_paths
from sekd_cli.networks.weights_file import load_network, packaged_weights, weights_digest
from sekd_cli.shards import Shard, parse_shard, torchrun_shard, wait_for_other_ranks
from sekd_cli.stored_features import Source, source_of
from sekd_cli.workers import interrupts_later, take_interrupt, workers

logger = logging.getLogger(__name__)

GPU_BATCH = 8  # keeps a GPU busy with photographs of the default size
CPU_BATCH = 4  # of small photographs, whose coarse layers take less time than starting them does
CPU_BATCH_PIXELS = 1_600_000  # four of 640x480 at both sizes; larger ones gain nothing, and memory is a thread's each
MOST_AT_ONCE = 16  # images of the network on a CPU; of the default size each takes 0.1 GB
MOST_READERS = 8  # threads; more are faster than any network here


@dataclass(frozen=True, kw_only=True)
class ExtractOptions:
    """What the command line of `sekd extract` gives; its help tells what each means."""

    paths: tuple[str, ...]
    output: Path
    max_keypoints: int
    threshold: float | None
    nms_radius: int | None
    max_size: int
    scales: str | None
    rotations: bool
    weights: Path | None
    descriptor_dtype: str
    masks: Path | None
    root: Path | None
    layout: str
    overwrite: bool
    update: bool
    shard: str | None
    failures: Path | None
    device: str
    precision: str
    batch_size: int | None
    threads: int | None
    max_pixels: int
    tile: int | None

    def __post_init__(self) -> None:
        if self.failures is not None and same_file(self.failures, self.output):
            raise UsageError(f"--failures {self.failures}: is the output; give another file")


def run(options: ExtractOptions) -> int:
    """Extract; prints the path of the feature file and returns the exit code."""
    shard, output = _shard(options.shard, options.output)
    folder = layout_folder(output, options.layout, FEATURE_FILES, sharded=shard.count > 1)
    jobs = _find_jobs(options, shard)
    if folder is not None:
        folder.check((job.entry.name for job in jobs), overwrite=options.overwrite)
    threads = wanted_threads(options.threads)
    set_threads(1)  # see `workers`
    with interrupts_later():  # which what reads weights would take for damage to the file
        extractor, attributes = _set_up(options, shard, len(jobs))
    settings = _pipeline_settings(options, extractor.device, threads, len(jobs))
    batch_extractor = BatchExtractor(extractor, options.max_pixels)
    processes = 0 if settings.threads == 1 else min(settings.threads, len(jobs))
    with (
        interrupts_later(),
        workers(processes, batch_extractor) as others,
        FeatureWriter(output, attributes, overwrite=options.overwrite) as writer,
    ):
        if not others:
            set_threads(threads)
        if folder is not None:
            folder.check([*writer.names(), *(job.entry.name for job in jobs)], overwrite=options.overwrite)
        remaining = _remaining(jobs, writer, update=options.update)
        with _Report(len(jobs) - len(remaining), options.failures) as report, progress_bar("extract", len(jobs)) as bar:
            bar.advance(report.skipped)
            for outcome in extract_all(remaining, batch_extractor, writer, settings, others):
                report.add(outcome)
                bar.advance(note=f"{len(report.failures)} failed" if report.failures else "")
    if options.shard is None:
        wait_for_other_ranks()
    exit_code = report.exit_code()
    if folder is not None:
        folder.write_features()
    click.echo(os.fsencode(output if folder is None else folder.path))
    return exit_code


def _shard(text: str | None, output: Path) -> tuple[Shard, Path]:
    """The part to do and the file it goes to: torchrun gives all its processes one command, so these name their own."""
    if text is not None:
        return parse_shard(text), output
    shard = torchrun_shard()
    return (Shard(), output) if shard is None else (shard, shard.own_path(output))


def _find_jobs(options: ExtractOptions, shard: Shard) -> list[Job]:
    """The images of this shard, each with its mask. Raises NothingToDoError if all shards together have none."""
    given = given_paths(options.paths)
    entries = find_images(given, root=options.root)
    if not given:
        raise NothingToDoError("the list on standard input is empty; give a path a line")
    if not entries:
        paths = ", ".join(options.paths)
        raise NothingToDoError(f"no images in {paths}; give photographs, or folders that hold some")
    jobs = [Job(entry, _mask_of(entry.name, options.masks)) for entry in shard.part_of(entries)]
    if options.masks is not None and jobs and not any(job.mask for job in jobs):
        logger.warning("%s holds no mask for any image; they are named like photo.jpg.png", options.masks)
    return jobs


def _mask_of(name: str, folder: Path | None) -> Path | None:
    """COLMAP's name for it; an image without a mask may have keypoints anywhere."""
    if folder is None:
        return None
    path = folder / f"{name}.png"
    try:
        path.lstat()
    except OSError as error:
        if error.errno in NOWHERE:
            return None  # of others reading it tells why
    return path


def _set_up(options: ExtractOptions, shard: Shard, images: int) -> tuple[Extractor, dict[str, Any]]:
    """The extractor, and the attributes of its feature file: all that decides the numbers in it."""
    device = resolve_device(options.device)
    keep_freed_memory()
    weights = options.weights or packaged_weights()
    network = load_network(weights)
    detection = DetectionSettings(
        max_keypoints=options.max_keypoints, threshold=options.threshold, nms_radius=options.nms_radius
    )
    views = ViewSettings(max_size=options.max_size, scales=parse_scales(options.scales), rotations=options.rotations)
    extractor = Extractor(
        network, detection, device=device, views=views, tile=options.tile, precision=options.precision, images=images
    )
    decisive = {
        **asdict(extractor.settings),
        **asdict(extractor.views),
        "edge": EDGE,  # since 122 of docs/EXPERIMENTS.md; files of before have keypoints there
        "precision": extractor.precision,  # what auto was
        "descriptor_dtype": options.descriptor_dtype,
        "masks": options.masks is not None,
        "shard": str(shard),
    }
    return extractor, file_attributes(network=network.name, weights_sha256=weights_digest(weights), settings=decisive)


def _pipeline_settings(options: ExtractOptions, device: torch.device, threads: int, images: int) -> PipelineSettings:
    on_cpu = device.type == "cpu"
    # of few images each thread has some
    own_batch = min(CPU_BATCH, -(-images // threads) or 1) if on_cpu else GPU_BATCH
    return PipelineSettings(
        batch_size=options.batch_size or own_batch,
        batch_pixels=CPU_BATCH_PIXELS if on_cpu and not options.batch_size else 0,
        readers=max(2, min(MOST_READERS, options.threads or available_cores())),
        threads=min(MOST_AT_ONCE, threads) if on_cpu else 1,
        descriptor_dtype=options.descriptor_dtype,
    )


def _remaining(jobs: list[Job], writer: FeatureWriter, *, update: bool) -> list[Job]:
    """Jobs whose features aren't in the file yet. Raises OutputError if images changed, unless they are updated."""
    remaining, changed = [], []
    for job in jobs:
        take_interrupt()
        try:
            source: Source | None = source_of(job.entry.path, job.mask)
        except OSError:
            source = None  # gone since, or it never was there
        try:
            if not writer.is_complete(job.entry.name, source):
                remaining.append(job)
        except ChangedImageError:
            changed.append(job)
    if changed and not update:
        names = ", ".join(job.entry.name for job in changed[:3]) + (", ..." if len(changed) > 3 else "")
        raise OutputError(
            f"{writer.path}: {counted(len(changed), 'image')} with another size, modification time or mask than when "
            f"extracted: {names}; give --update to extract again what changed, --overwrite for all"
        )
    return remaining + changed


class _Report:
    """What was done, what not and why; written to `failures_path` as it happens, told at the end."""

    def __init__(self, skipped: int, failures_path: Path | None) -> None:
        self.skipped = skipped
        self.done = 0
        self.keypoints = 0
        self.failures: list[str] = []
        self._start = time.monotonic()
        self._list = FailureList(failures_path)

    def add(self, outcome: Outcome) -> None:
        """Count an image."""
        if outcome.failure is None:
            self.done += 1
            self.keypoints += outcome.keypoints
            logger.debug("%s: %s", outcome.entry.name, counted(outcome.keypoints, "keypoint"))
            if outcome.keypoints == 0:
                logger.warning(
                    "%s: no keypoints; it is even, tiny or masked, or --threshold is too high", outcome.entry.path
                )
            return
        self.failures.append(outcome.failure)
        path = os.fsencode(outcome.entry.path).decode(errors="backslashreplace")
        self._list.add({"name": outcome.entry.name, "path": path, "reason": outcome.failure})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._list.close()
        seconds = time.monotonic() - self._start
        for failure in self.failures:
            logger.error("%s", failure)
        skipped = f", {self.skipped} done before" if self.skipped else ""
        rate = f"; {counted(self.keypoints, 'keypoint')}, {self.done / seconds:.1f} images/s" if self.done else ""
        logger.info("%s done%s, %d failed%s", counted(self.done, "image"), skipped, len(self.failures), rate)

    def exit_code(self) -> int:
        """0, or 1 if some failed. Raises NothingToDoError if no image could be read."""
        if self.failures and not self.done and not self.skipped:
            raise NothingToDoError("no image could be read; the reasons are above")
        return SOME_FAILED if self.failures else 0
