"""What `sekd show` does: get features and matches, from files or now, draw them, write and open the pictures."""

import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from sekd_cli.config import DetectionSettings, MatchingSettings
from sekd_cli.counting import counted
from sekd_cli.device import set_threads
from sekd_cli.drawing import (
    INLIER,
    OUTLIER,
    Colour,
    Legend,
    View,
    colours_of,
    draw_keypoints,
    draw_matches,
    fitted,
    upright,
)
from sekd_cli.errors import SOME_FAILED, ImageError, InputFileError, NothingToDoError, OutputError, UsageError
from sekd_cli.extraction import Extractor
from sekd_cli.feature_file import FeatureReader, name_of
from sekd_cli.image_opening import open_unlimited
from sekd_cli.images import Photograph, read_image
from sekd_cli.match_file import MatchReader, fingerprint
from sekd_cli.networks.weights_file import load_network, packaged_weights
from sekd_cli.new_file import new_file
from sekd_cli.pair_matching import MatchableImage, match_images, matchable_image, verified
from sekd_cli.seen_pixels import SeenPhotograph
from sekd_cli.stored_features import StoredFeatures
from sekd_cli.stored_matches import StoredMatches
from sekd_cli.verification import verification_settings

logger = logging.getLogger(__name__)

MADE_BY = "sekd show"  # in pictures, so that no photograph is overwritten by mistake


@dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """What the command line of `sekd show` gives; its help tells what each means."""

    images: tuple[Path, ...]
    features: Path | None
    matches: Path | None
    verify: str | None
    refine: bool
    keypoints: bool
    output: Path | None
    open_: bool
    size: int
    max_keypoints: int | None
    weights: Path | None
    max_pixels: int

    def __post_init__(self) -> None:
        if self.size < 0:
            raise UsageError(f"--size {self.size}: give 0 (the photograph's own) or more pixels")
        if not self.of_pair and (self.matches or self.verify):
            raise UsageError("--matches and --verify are for two images drawn together; give two, without --keypoints")
        if self.refine and (self.matches or not self.verify):
            raise UsageError("--refine: only with --verify, and with matches that are found now")
        if self.matches and not self.features:
            raise UsageError("--matches: give --features too, the ones that were matched")
        for name, given in (("--weights", self.weights), ("--max-keypoints", self.max_keypoints)):
            if self.features and given is not None:
                raise UsageError(f"{name}: nothing to extract with --features; leave one out")

    @property
    def of_pair(self) -> bool:
        """Whether one picture of matches is asked for."""
        return len(self.images) == 2 and not self.keypoints


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    """A photograph with its features."""

    path: Path
    name: str  # in the feature file; of a photograph whose features were extracted now that of the file
    photograph: Photograph
    features: StoredFeatures
    file_size: int | None = None  # bytes of the file that they are of, if they are known

    def view(self, which: np.ndarray | slice = slice(None), moved: np.ndarray | float = 0.0) -> View:
        """The photograph as it is looked at, with some of its keypoints, moved by so many pixels."""
        return upright(self.photograph, self.features.keypoints[which] + moved)

    def matchable(self, max_pixels: int) -> MatchableImage:
        """Its features ready to be matched, and aligned by its pixels as `sekd match --refine` reads them."""
        seen = SeenPhotograph.of(self.path, self.features, max_pixels=max_pixels, file_size=self.file_size)
        return matchable_image(self.name, self.features, pixels=seen.read)


def run(options: ShowOptions) -> int:
    """Draw; prints the paths of the pictures and returns the exit code."""
    source = _FeatureSource(options)
    if options.of_pair:
        first, second = (source.load(path) for path in options.images)
        if first is None or second is None:
            raise NothingToDoError("a picture of matches takes two images; the reasons are above")
        picture = _draw_pair(first, second, options)
        _finish(picture, f"{options.images[0].stem}-{options.images[1].stem}.matches.png", options)
        return 0
    failed = 0
    stems = [path.stem for path in options.images]
    if len(set(stems)) < len(stems):
        stems = [path.as_posix().strip("./").replace("/", "-") for path in options.images]
    if len(set(stems)) < len(set(options.images)):
        raise UsageError("two pictures would have the same name; give these images one by one, each with its own -o")
    for path, stem in zip(options.images, stems, strict=True):
        loaded = source.load(path)
        if loaded is None:
            failed += 1
            continue
        picture = draw_keypoints(fitted(loaded.view(), options.size), loaded.features.scores, loaded.name)
        _finish(picture, f"{stem}.keypoints.png", options)
    if failed == len(options.images):
        raise NothingToDoError("no image could be read; the reasons are above")
    return SOME_FAILED if failed else 0


class _FeatureSource:
    """Features from a file, or from the network."""

    def __init__(self, options: ShowOptions) -> None:
        self._options = options
        self._extractor: Extractor | None = None
        self._names: list[str] = []
        if options.features is not None:
            with FeatureReader(options.features) as reader:
                self._names = reader.names()

    def load(self, path: Path) -> _Loaded | None:
        """None if the photograph can't be read, which is told.

        Raises InputFileError if the file has no features of this image, or none to be refined.
        """
        try:
            return self._load(path)
        except ImageError as error:
            logger.error("%s", error)
            return None

    def _load(self, path: Path) -> _Loaded:
        photograph = read_image(path, max_pixels=self._options.max_pixels, colour=True)
        if self._options.features is None:
            return _Loaded(path=path, name=path.name, photograph=photograph, features=self._extract(path))
        name = name_of(path, self._names)
        if name is None:
            file = self._options.features
            raise InputFileError(f"{file}: no features of {path}; run sekd extract on it, or leave --features out")
        with FeatureReader(self._options.features) as reader:
            if self._options.refine:
                reader.refuse_refined()
            features, file_size = reader.read(name, turned=self._options.verify is not None), reader.file_size(name)
        if features.image_size != photograph.stored_size and features.size_stated:
            there, here = ("x".join(map(str, size)) for size in (features.image_size, photograph.stored_size))
            logger.warning("%s: %s pixels, but its features are of one with %s", path, here, there)
        return _Loaded(path=path, name=name, photograph=photograph, features=features, file_size=file_size)

    def _extract(self, path: Path) -> StoredFeatures:
        """The features that `sekd extract` finds on a CPU: it sees grey pixels, and no more of them than it needs."""
        if self._extractor is None:
            set_threads(1)  # as each process of `sekd extract`: on more threads sums may be rounded otherwise
            network = load_network(self._options.weights or packaged_weights())
            limit = self._options.max_keypoints
            settings = DetectionSettings() if limit is None else DetectionSettings(max_keypoints=limit)
            cpu, few = torch.device("cpu"), len(self._options.images)
            self._extractor = Extractor(network, settings, device=cpu, precision="auto", images=few)
        photograph = read_image(path, max_pixels=self._options.max_pixels, enough=self._extractor.enough)
        return self._extractor.extract([self._extractor.prepare(photograph)])[0]


def _draw_pair(first: _Loaded, second: _Loaded, options: ShowOptions) -> np.ndarray:
    images = first.matchable(options.max_pixels), second.matchable(options.max_pixels)
    matches = match_images(*images, MatchingSettings()) if options.matches is None else _stored(first, second, options)
    pairs = matches.indices()
    bounds: tuple[float, float] | None = None
    marks: tuple[tuple[Colour, str], ...] = ()
    outliers, moved = 0, np.zeros((0, 2), np.float32)
    if options.verify is not None:
        settings = MatchingSettings(), verification_settings(options.verify)
        agreeing = match_images(*images, *settings) if options.refine else verified(matches, images, *settings)
        others, inliers = pairs[agreeing.matches0[pairs[:, 0]] != pairs[:, 1]], agreeing.indices()
        pairs, outliers = np.concatenate((others, inliers)), len(others)  # inliers on top
        colours: list[Colour] = [OUTLIER] * outliers + [INLIER] * len(inliers)
        told = f"{counted(len(inliers), 'inlier')} of {_model_words(options.verify)}"
        if agreeing.alignment is not None:
            moved = agreeing.alignment.offsets
            told += f", {(agreeing.alignment.correlations > 0).sum():,} aligned"
        marks = ((INLIER, told), (OUTLIER, counted(outliers, "outlier")))
    elif matches.model_name is not None:
        colours, marks = [INLIER] * len(pairs), ((INLIER, f"inliers of {_model_words(matches.model_name)}"),)
    else:
        scores = matches.scores0[pairs[:, 0]]
        order = np.argsort(scores, kind="stable")  # the best on top
        pairs = pairs[order]
        colours, low, high = colours_of(scores[order])
        bounds = (low, high) if len(pairs) else None
    note = counted(len(pairs), "match")
    legend = Legend(f"{first.name} | {second.name}", note, bounds, marks=marks)
    moves = np.concatenate((np.zeros((len(pairs) - len(moved), 2), np.float32), moved))
    view0, view1 = fitted(first.view(pairs[:, 0]), options.size), fitted(second.view(pairs[:, 1], moves), options.size)
    return draw_matches(view0, view1, colours, legend, faint=outliers)


def _stored(first: _Loaded, second: _Loaded, options: ShowOptions) -> StoredMatches:
    """The matches in the file. Raises InputFileError if they are of other features."""
    assert options.matches is not None, "else they are found"
    names, features = (first.name, second.name), (first.features, second.features)
    with MatchReader(options.matches) as reader:
        matches = reader.read(names, count0=len(first.features))
        matched = reader.fingerprints(names) or reader.fingerprints(names[::-1])[::-1]
    same = matched in {(), tuple(map(fingerprint, features))}
    if not same or len(matches.matches0) != len(features[0]) or matches.matches0.max(initial=-1) >= len(features[1]):
        raise InputFileError(
            f"{options.matches}: not of these features; give those that were matched, or run sekd match --update"
        )
    return matches


def _model_words(model: str) -> str:
    return {"homography": "a homography", "essential": "an essential matrix"}.get(model, f"a {model} matrix")


def _finish(picture: np.ndarray, default_name: str, options: ShowOptions) -> None:
    """Write a picture, print its path, open it if asked to."""
    output = options.output
    if output is None:
        folder = Path(tempfile.mkdtemp(prefix="sekd-")) if options.open_ else Path()
        output = folder / default_name
    elif output.suffix.lower() != ".png" or os.path.isdir(output):
        if output.suffix and not os.path.isdir(output):
            raise UsageError(f"-o {output}: give a name that ends in .png, or a folder")
        output = output / default_name
    elif len(options.images) > 1 and not options.of_pair:
        raise UsageError(f"-o {output}: one file for {len(options.images)} pictures; give a folder")
    _write(picture, output)
    click.echo(os.fsencode(output))
    if options.open_ and click.launch(str(output)) != 0:
        logger.warning("no viewer to open %s with", output)


def _write(picture: np.ndarray, path: Path) -> None:
    if os.path.exists(path) and not _is_ours(path):
        raise OutputError(f"{path}: exists already and is no picture of sekd show; give another output with -o")
    note = PngImagePlugin.PngInfo()
    note.add_text("Software", MADE_BY)
    with new_file(path, overwrite=True) as temporary:
        Image.fromarray(picture).save(temporary, "PNG", pnginfo=note)


def _is_ours(path: Path) -> bool:
    try:
        with open_unlimited(path) as image:
            return image.info.get("Software") == MADE_BY
    except (OSError, UnidentifiedImageError, ValueError):
        return False
