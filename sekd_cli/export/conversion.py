"""From any layout to any other: features and matches of hloc, the IMC benchmark and Kaggle's baselines."""

import logging
import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from sekd_cli.counting import counted
from sekd_cli.errors import InputFileError, UsageError
from sekd_cli.export.flat_folder import FlatFolder
from sekd_cli.export.layouts import FEATURE_FILES, FlatOutput, PairMatches, named_pairs
from sekd_cli.feature_file import FeatureReader, write_image
from sekd_cli.file_contents import FEATURES, FLAT, MATCHES, items, kind_of, reading
from sekd_cli.hdf5_file import HDF5_SUFFIXES, create_hdf5, open_for_reading
from sekd_cli.match_file import MatchReader, check_flat_names, fingerprint, flat_name
from sekd_cli.new_file import new_file, spare_inputs

logger = logging.getLogger(__name__)


class Converted(NamedTuple):
    """What was written: so many images' features, so many pairs' matches; None where the input has none."""

    images: int | None
    pairs: int | None


def _kind(path: Path) -> str:
    if os.path.isdir(path):
        return FLAT
    with open_for_reading(path, "feature or match") as file, reading(path):
        kind = kind_of(file)
    if kind == FLAT:
        raise UsageError(f"{path}: one file of several that belong together; give the folder that holds them")
    return kind


def convert(
    inputs: Sequence[Path], layout: str, output: Path, *, images: Path | None = None, overwrite: bool = False
) -> Converted:
    """Write what `inputs` hold in another layout.

    inputs: a feature file, a match file or both in hloc's layout; or a folder of flat files. output: a folder; for
    `hloc` it may be a file where there are only features or only matches. images: the photographs, for the names and
    sizes that flat files don't keep.

    Raises UsageError if inputs and output don't fit, an input would be written over or keys collide, InputFileError if
    an input is missing or damaged, NothingToDoError if a feature file has no complete image, OutputError if the output
    exists (unless `overwrite`) or can't be written.
    """
    kinds = [_kind(path) for path in inputs]
    if len(kinds) != len(set(kinds)) or (FLAT in kinds and len(kinds) > 1):
        given = ", ".join(f"{path} ({kind})" for path, kind in zip(inputs, kinds, strict=True))
        raise UsageError(f"{given}: give one feature file, one match file, or both; or one folder of flat files")
    by_kind = dict(zip(kinds, inputs, strict=True))
    if FLAT in by_kind:
        with FlatFolder(by_kind[FLAT], images) as folder:
            if unknown := folder.unknown:
                logger.warning("%s: no photograph of %s, such as %s", images, counted(len(unknown), "key"), unknown[0])
            if nested := folder.nested:
                where = f"{folder.folder}/keypoints.h5"
                groups = counted(len(nested), "group")
                logger.warning("%s: %s left out, such as %s; keys are flat", where, groups, nested[0])
            if not folder.has_features:
                logger.warning("%s: no descriptors.h5 in it, so features are left out", folder.folder)
            written = _written(layout, output, features=folder.has_features, matches=folder.has_matches)
            spare_inputs(written, folder.paths)
            with ExitStack() as outputs:
                if layout == "hloc":
                    return _flat_to_hloc(folder, output, outputs, overwrite=overwrite)
                flat = FlatOutput(layout=layout, folder=output, outputs=outputs, overwrite=overwrite)
                return _flat_to_flat(folder, flat)
    if layout == "hloc":
        raise UsageError(f"{inputs[0]}: in hloc's layout already; give --to imc or --to kaggle")
    spare_inputs(_written(layout, output, features=FEATURES in by_kind, matches=MATCHES in by_kind), inputs)
    with ExitStack() as readers, ExitStack() as outputs:
        features = readers.enter_context(FeatureReader(by_kind[FEATURES])) if FEATURES in by_kind else None
        matches = readers.enter_context(MatchReader(by_kind[MATCHES])) if MATCHES in by_kind else None
        flat = FlatOutput(layout=layout, folder=output, outputs=outputs, overwrite=overwrite)
        return _hloc_to_flat(features, matches, flat)


def _written(layout: str, output: Path, *, features: bool, matches: bool) -> list[Path]:
    """The files that `output` may become."""
    kinds = (("feats",) if layout == "hloc" else FEATURE_FILES) if features else ()
    return [output, *(output / f"{kind}.h5" for kind in (*kinds, *(("matches",) if matches else ())))]


def _hloc_to_flat(features: FeatureReader | None, matches: MatchReader | None, output: FlatOutput) -> Converted:
    if features is not None:
        _tell_incomplete(features)
    if features is not None and matches is not None:
        _check_belonging(features, matches)
    images = None if features is None else output.write_features(features)
    if matches is None:
        return Converted(images, None)
    if features is None:
        _warn_of_flat_names(matches)
    return Converted(images, output.write_stored_matches(matches, [] if features is None else features.names()))


def _tell_incomplete(features: FeatureReader) -> None:
    """Count the images left out. Raises NothingToDoError if all are."""
    features.some_names()
    with open_for_reading(features.path, "feature") as file, reading(features.path):
        incomplete = [item.name for item in items(file, FEATURES) if not item.complete]
    if incomplete:
        images = counted(len(incomplete), "image")
        logger.warning("%s: %s left out as incomplete, such as %s", features.path, images, incomplete[0])


def _warn_of_flat_names(matches: MatchReader) -> None:
    for name in chain.from_iterable(matches.flat_pairs()):
        if "-" in name:
            logger.warning("%s: %s may be a name with / in it; give the feature file as well", matches.path, name)
            return


def _check_belonging(features: FeatureReader, matches: MatchReader) -> None:
    """Raise InputFileError unless these features were matched, where the match file tells which were."""
    here: dict[str, int] = {}
    for pair in named_pairs(matches, features.names()):
        for name, matched in zip(pair, matches.fingerprints(pair), strict=False):  # none in other tools' files
            if name not in here:
                here[name] = fingerprint(features.read(name))
            if here[name] != matched:
                raise InputFileError(
                    f"{matches.path}: {pair[0]} and {pair[1]} were matched with other features of {name}; "
                    "give those, or match again"
                )


def _flat_to_flat(folder: FlatFolder, output: FlatOutput) -> Converted:
    images = output.write_features(folder) if folder.has_features else None
    return Converted(images, output.write_matches(folder.matches(), folder.names()) if folder.has_matches else None)


def _flat_to_hloc(folder: FlatFolder, output: Path, outputs: ExitStack, *, overwrite: bool) -> Converted:
    as_file = output.suffix in HDF5_SUFFIXES and not os.path.isdir(output)
    if as_file and folder.has_features and folder.has_matches:
        raise UsageError(f"{folder.folder} holds features and matches; give a folder with -o")
    images = pairs = None
    if folder.has_features:
        path = outputs.enter_context(new_file(output if as_file else output / "feats.h5", overwrite=overwrite))
        guessed = 0
        with create_hdf5(path, {}) as file:
            for name in folder.names():
                features = folder.read(name)
                guessed += not features.size_stated
                write_image(file, name, features, None, "float32")
        images = len(folder.names())
        if guessed:
            remedy = "" if folder.images else "; give --images"  # else those without a photograph, told already
            logger.warning("%s: guessed the size of %s%s", folder.folder, counted(guessed, "image"), remedy)
    if folder.has_matches:
        check_flat_names(folder.names())
        path = outputs.enter_context(new_file(output if as_file else output / "matches.h5", overwrite=overwrite))
        with create_hdf5(path, {}) as file:
            pairs = _write_hloc_matches(file, folder.matches(), folder)
    return Converted(images, pairs)


def _write_hloc_matches(file: h5py.File, matches: Iterable[PairMatches], folder: FlatFolder) -> int:
    """Matches as hloc has them, one a keypoint: of several the first."""
    count = lost = 0
    for pair, indices in matches:
        if tabbed := [name for name in pair if "\t" in name]:
            raise UsageError(f"{tabbed[0]!r}: a match file can't hold names with tabs; rename it in all files")
        places = ["/".join(map(flat_name, names)) for names in (pair, pair[::-1])]
        if any(place in file for place in places):
            logger.warning("%s and %s: there twice, the second left out", *pair)
            continue
        matches0 = np.full(folder.count(pair[0]), -1, dtype=np.int32)
        matches0[indices[::-1, 0]] = indices[::-1, 1]  # backwards, so that the first stays
        group = file.create_group(places[0])
        group["matches0"] = matches0
        group["matching_scores0"] = (matches0 >= 0).astype(np.float32)
        group.attrs["names"] = np.bytes_("\t".join(pair).encode())
        count += 1
        lost += len(indices) - int((matches0 >= 0).sum())
    if lost:
        logger.warning("%s: %s left out, as hloc keeps only one a keypoint", folder.folder, counted(lost, "match"))
    return count
