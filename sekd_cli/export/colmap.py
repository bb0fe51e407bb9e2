"""Features and matches as a COLMAP database, verified and ready for the mapper."""

import glob
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sekd_cli.config import VerificationSettings
from sekd_cli.coordinates import COLMAP_OFFSET
from sekd_cli.counting import counted
from sekd_cli.errors import NothingToDoError, OutputError, UsageError
from sekd_cli.export.colmap_watch import Watch
from sekd_cli.export.layouts import named_pairs
from sekd_cli.feature_file import FeatureReader
from sekd_cli.file_errors import one_line
from sekd_cli.match_file import Identity, MatchReader
from sekd_cli.new_file import new_file, spare_inputs
from sekd_cli.pycolmap_extra import apart, require_pycolmap
from sekd_cli.verification import is_chance
from sekd_cli.workers import WorkerDiedError

IMAGES_AT_HAND = 64  # whose keypoints stay in memory, as neighbours in the list of pairs share images
READABLE = "JPEG, PNG, TIFF, BMP, PPM, TGA"  # by pycolmap 4.2, of the formats that `sekd extract` takes
BATCHES, LEAST_BATCH = 50, 100  # of pairs that COLMAP verifies before it writes them: by these it's seen how far it is
SIDE_FILES = ("-wal", "-shm", "-journal")  # what SQLite keeps beside a database that is in use, or was when killed


Tell = Callable[[str, int, int | None], None]
"""What is being done ("verify pairs"), how many are done, and of how many, if that's known."""


@dataclass(frozen=True, kw_only=True)
class CameraSettings:
    """Which images share a camera, and what is known of it; see COLMAP's documentation on camera models."""

    mode: str = "auto"  # or single, per-folder, per-image; auto: those of one camera in EXIF share it
    model: str = "SIMPLE_RADIAL"
    parameters: str = ""  # numbers with commas between; none: the focal length from EXIF, or 1.2 times the longer edge


@dataclass(kw_only=True)
class ColmapExport:
    """What is in the database, and what is not."""

    images: int = 0
    pairs: int = 0
    matches: int = 0
    verified_pairs: int = 0
    pairs_of_chance: int = 0  # that COLMAP verified, though no more matches agree than chance has
    missing: list[str] = field(default_factory=list)  # images with features, not in the folder
    unreadable: list[str] = field(default_factory=list)  # by COLMAP
    unlike: list[str] = field(default_factory=list)  # not of the size of the image whose camera they were to share
    resized: list[str] = field(default_factory=list)  # not of the size that was extracted; they have no keypoints
    skipped_pairs: int = 0  # of images that have no features, or are in one of these lists


class _Imported(NamedTuple):
    """An image in the database."""

    number: int
    size: tuple[int, int]  # width, height


class _Described(NamedTuple):
    """An image with its keypoints in the database."""

    number: int
    features: Identity


def export_colmap(
    images: Path,
    features: FeatureReader,
    matches: MatchReader,
    database: Path,
    camera: CameraSettings,
    *,
    overwrite: bool = False,
    tell: Tell = lambda what, done, total: None,
) -> ColmapExport:
    """Write cameras, images, keypoints and matches, and verify the matches; `tell` is called now and then.

    COLMAP verifies; what it takes for verified though chance would have as much (`verification.is_chance`) is not kept.

    images: the folder that names in `features` are relative to. Descriptors stay out, as COLMAP takes only SIFT's kind.

    Raises MissingExtraError without pycolmap, NothingToDoError if the folder has none of the images, or none that can
    be used, or there are no matches of them, UsageError if the camera makes no sense or `database` is an input,
    InputFileError if matches and features don't belong together, OutputError if `database` exists (unless `overwrite`)
    or can't be written.
    """
    pycolmap = require_pycolmap()
    spare_inputs([database], [features.path, matches.path])
    present = _present(images, features)
    report = ColmapExport(missing=sorted(set(features.names()).difference(present)))
    with Watch() as watch, _told_in_a_line(database), new_file(database, overwrite=overwrite) as path:
        path.touch()  # which tells why, where it can't be written
        path.unlink()
        with watch.growth(path, "images", lambda rows: tell("read images", rows, len(present))):
            imported = _import_images(pycolmap, path, images, present, camera)
        described = _write_keypoints(pycolmap, path, features, imported, tell)
        for name in present:
            if name not in imported:
                unreadable = pycolmap.Bitmap.read(images / name, as_rgb=False) is None
                (report.unreadable if unreadable else report.unlike).append(name)
        report.resized = [name for name in imported if name not in described]
        report.images = len(described)
        if not described:
            raise NothingToDoError(
                f"{images}: COLMAP can use none of {counted(len(present), 'image')}; "
                f"it takes {READABLE} files, as large as when they were extracted"
            )
        with pycolmap.Database.open(path) as opened:
            _write_matches(opened, matches, features, described, report, tell=tell)
        _verify(pycolmap, path, watch, report, tell)
        if path.with_name(path.name + SIDE_FILES[0]).exists():  # of which closing took nothing, and told nobody
            raise RuntimeError("SQLite could not finish it")
        for suffix in SIDE_FILES:  # of an earlier database, which SQLite would apply to the new one
            Path(os.path.realpath(database) + suffix).unlink(missing_ok=True)
    return report


def _present(images: Path, features: FeatureReader) -> list[str]:
    """The names of `features` that are files in the folder. Raises NothingToDoError if none is."""
    names = features.some_names()
    present = [name for name in names if os.path.isfile(images / name)]
    if not present:
        raise NothingToDoError(f"{images} has no image of {features.path}; give their own folder")
    return present


@contextmanager
def _told_in_a_line(database: Path) -> Iterator[None]:
    try:
        yield
    except WorkerDiedError as error:
        raise OutputError(f"{database}: COLMAP crashed ({error}); is the disk full, or the memory?") from error
    except RuntimeError as error:  # pycolmap's of its database, which tells of a full disk by no number
        raise OutputError(f"{database}: COLMAP can't write it ({one_line(error)}); is the disk full?") from error
    finally:
        _clear_side_files(Path(os.path.realpath(database)))


def _verify(pycolmap: Any, path: Path, watch: Watch, report: ColmapExport, tell: Tell) -> None:
    """Have COLMAP verify all pairs, and keep nothing of those that chance would have verified as well."""
    geometry = pycolmap.TwoViewGeometryOptions()
    geometry.ransac.random_seed = 0  # the same database from run to run
    pairing = pycolmap.ExistingMatchedPairingOptions()
    pairing.batch_size = max(LEAST_BATCH, report.pairs // BATCHES)
    with watch.growth(path, "two_view_geometries", lambda rows: tell("verify pairs", rows, report.pairs)):
        verify = partial(pycolmap.geometric_verification, path, pairing_options=pairing)
        apart(lambda: verify(two_view_geometry_options=geometry))
    with pycolmap.Database.open(path) as opened:
        of_chance = _of_chance(pycolmap, opened, geometry.ransac.max_error, tell)
        report.pairs_of_chance = len(of_chance)
        with_inliers = opened.read_two_view_geometry_num_inliers()[0]  # `num_verified_image_pairs` counts all
        report.verified_pairs = len(with_inliers) - len(of_chance)
    if of_chance:
        apart(lambda: _forget(pycolmap, path, of_chance))


def _of_chance(pycolmap: Any, database: Any, error: float, tell: Tell) -> list[tuple[int, int]]:
    """The pairs whose geometries chance would have found as well. error: of an inlier, pixels."""
    kinds = pycolmap.TwoViewGeometryConfiguration
    models = dict.fromkeys((kinds.PLANAR, kinds.PANORAMIC, kinds.PLANAR_OR_PANORAMIC), "homography")
    models[kinds.CALIBRATED] = "essential"
    points = lru_cache(IMAGES_AT_HAND)(lambda number: database.read_keypoints(number)[:, :2])
    found = []
    numbers, inliers = database.read_two_view_geometry_num_inliers()
    for done, (number, agreeing) in enumerate(zip(numbers, inliers, strict=True), start=1):
        tell("check pairs", done, len(numbers))
        pair = pycolmap.pair_id_to_image_pair(number)
        geometry = database.read_two_view_geometry(*pair)
        model = models.get(geometry.config, "fundamental")
        indices = database.read_matches(*pair)
        xy0, xy1 = (points(image)[column] for image, column in zip(pair, indices.T, strict=True))
        lines = None if model == "homography" else geometry.F
        if is_chance(agreeing, xy0, xy1, VerificationSettings(model=model, threshold=error), lines):
            found.append(pair)
    return found


def _forget(pycolmap: Any, path: Path, pairs: list[tuple[int, int]]) -> None:
    """Delete the geometries of pairs; COLMAP then writes the whole database anew."""
    with pycolmap.Database.open(path) as database:
        for pair in pairs:
            database.delete_two_view_geometry(*pair)


def _clear_side_files(database: Path) -> None:
    """Remove what failed and killed exports left beside it."""
    for suffix in SIDE_FILES:
        for left in database.parent.glob(f".{glob.escape(database.name)}.*.part{suffix}"):
            if not left.with_name(left.name.removesuffix(suffix)).exists():  # which `new_file` has cleared away
                left.unlink(missing_ok=True)


def _import_images(
    pycolmap: Any, path: Path, images: Path, names: list[str], camera: CameraSettings
) -> dict[str, _Imported]:
    """Cameras, rigs, frames and images; those that COLMAP could read, by name."""
    mode = getattr(pycolmap.CameraMode, camera.mode.upper().replace("-", "_"))
    options = pycolmap.ImageReaderOptions()
    options.camera_model, options.camera_params = camera.model, camera.parameters
    pycolmap.Database.open(path).close()
    try:
        apart(lambda: pycolmap.import_images(path, images, mode, names, options))
    except ValueError as error:
        given = f"--camera-model {camera.model} --camera-params {camera.parameters!r}"
        remedy = "give one of its models, such as OPENCV, and as many numbers as that has"
        raise UsageError(f"{given}: COLMAP refuses them; {remedy}") from error
    with pycolmap.Database.open(path) as database:
        sizes = {one.camera_id: (one.width, one.height) for one in database.read_all_cameras()}
        return {one.name: _Imported(one.image_id, sizes[one.camera_id]) for one in database.read_all_images()}


def _write_keypoints(
    pycolmap: Any, path: Path, features: FeatureReader, imported: dict[str, _Imported], tell: Tell
) -> dict[str, _Described]:
    """Keypoints in COLMAP's pixels, of the images that are as large as they were when extracted."""
    own = "sekd_schema" in features.attributes  # in files of other tools the size may be a guess
    described = {}
    with pycolmap.Database.open(path) as database:
        for done, (name, (number, size)) in enumerate(imported.items(), start=1):
            tell("write images", done, len(imported))
            found = features.read(name)
            if own and found.image_size != size:
                continue
            database.write_keypoints(number, found.keypoints + np.float32(COLMAP_OFFSET))
            described[name] = _Described(number, Identity.of(found))
    return described


def _write_matches(
    database: Any,
    matches: MatchReader,
    features: FeatureReader,
    described: dict[str, _Described],
    report: ColmapExport,
    *,
    tell: Tell,
) -> None:
    """The matches of all pairs of described images. Raises NothingToDoError if no pair is of images with features."""
    names = features.names()
    known = frozenset(names)
    of_these = False  # whether any pair is of images that have features
    for pair in named_pairs(matches, names):
        of_these = of_these or known.issuperset(pair)
        if pair[0] in described and pair[1] in described:
            image0, image1 = described[pair[0]], described[pair[1]]
            indices = matches.read_of(pair, (image0.features, image1.features)).indices()
            _write_pair(database, image0, image1, indices, report)
        else:
            report.skipped_pairs += 1
        tell("write pairs", report.pairs, None)
    if not of_these:
        held = "matches of other images" if report.skipped_pairs else "no matches of any pair"
        raise NothingToDoError(f"{matches.path}: {held}; give those of {features.path}")


def _write_pair(
    database: Any, image0: _Described, image1: _Described, indices: np.ndarray, report: ColmapExport
) -> None:
    number0, number1 = image0.number, image1.number
    if number0 == number1 or database.exists_matches(number0, number1):
        return  # the same pair the other way round, from another tool
    database.write_matches(number0, number1, indices.astype(np.uint32))
    report.pairs += 1
    report.matches += len(indices)
