"""Features on disk: one HDF5 file, a group an image, in hloc's layout.

A group is named by the image's POSIX path relative to the image root. It holds `keypoints` (N, 2) float32, `scores`
(N,) float32, `descriptors` (D, N) float32 or float16, `image_size` (2,) int64 (width, height) and `scales` (N,)
float32. Only a group whose attribute `complete` is true counts as done: it is written last. Files of other tools that
hold `keypoints` and `descriptors` are read as well.
"""

import json
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import h5py
import numpy as np

from sekd_cli import __version__
from sekd_cli.errors import ImageError, InputFileError, OutputError
from sekd_cli.hdf5_file import (
    HDF5Writer,
    check_arrays,
    check_name,
    member,
    open_for_reading,
    plain_attributes,
    watching_for_damage,
    write_arrays,
)

logger = logging.getLogger(__name__)

SCHEMA = 1  # raised when a file written now can't be read by the code of before
PIXEL_CONVENTION = "(x, y) in the pixel grid of the stored file; the centre of the top-left pixel is (0, 0)"
DATASETS = ("keypoints", "scores", "descriptors", "image_size", "scales")
TURNED = "descriptors_turned"  # (3, D, N): of the upright image turned counter-clockwise by 1, 2 and 3 quarters
TURNED_CHECKSUM = "crc32_turned"  # of its own, as most readers leave them
MAXIMUM_VALUES = 2**31  # in one dataset; a larger claim is damage, not features


@dataclass(frozen=True, kw_only=True)
class StoredFeatures:
    """The features of one image as a file keeps them, best first."""

    keypoints: np.ndarray  # (N, 2) float32, x and y in pixels of the stored image
    scores: np.ndarray  # (N,) float32, descending; ones where the file has none
    descriptors: np.ndarray  # (N, D) float32; rows
    image_size: tuple[int, int]  # width, height; where the file has none, the smallest that holds all keypoints
    scales: np.ndarray | None = None  # (N,) float32, pixels of the stored image per pixel that the network saw
    turned: np.ndarray | None = None  # (3, N, D) float32, descriptors of the image turned by 1, 2, 3 quarters

    def __len__(self) -> int:
        return len(self.keypoints)


class Source(NamedTuple):
    """By what a changed image (or its mask) is noticed: sizes in bytes, times in nanoseconds."""

    size: int
    modified: int
    mask_size: int = -1  # -1: no mask
    mask_modified: int = -1


def source_of(path: Path, mask: Path | None = None) -> Source:
    """The state of an image file and of its mask. Raises OSError."""
    image = path.stat()
    if mask is None:
        return Source(image.st_size, image.st_mtime_ns)
    status = mask.stat()
    return Source(image.st_size, image.st_mtime_ns, status.st_size, status.st_mtime_ns)


class FeatureReader:
    """The features in a file, of `sekd` or of another tool with hloc's layout. Safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        """Raises InputFileError if the file is missing, damaged, not HDF5 or of a later version."""
        self.path = Path(path)
        self._lock = threading.Lock()
        self._file = open_for_reading(self.path, "features")
        with self._reading(self.path):
            self.attributes: Mapping[str, object] = plain_attributes(self._file)
        schema = self.attributes.get("sekd_schema")
        if isinstance(schema, int) and schema > SCHEMA:
            self._file.close()
            raise InputFileError(f"{path}: written by a later sekd (schema {schema}, not {SCHEMA}); update sekd")
        self._own = schema is not None
        self._names: list[str] | None = None

    def names(self) -> list[str]:
        """Names of all images whose features are complete, sorted."""
        if self._names is None:
            with self._lock, self._reading(self.path):
                self._names = sorted(_images(self._file, own=self._own))
        return list(self._names)

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        try:
            check_name(name)
        except ValueError:
            return False
        with self._lock, self._reading(self.path):
            group = member(self._file, name)
            return isinstance(group, h5py.Group) and is_image(group, own=self._own)

    def read(self, name: str, *, turned: bool = False) -> StoredFeatures:
        """The features of one image; `turned` reads the descriptors at other turns too, if there are any.

        Raises InputFileError if there are none, or they are damaged.
        """
        if name not in self:
            raise InputFileError(f"{self.path}: no features of {name}; run sekd extract on it, or mend the name")
        with self._lock, self._reading(f"{self.path}: {name}"):
            return _read_group(self._file[name], f"{self.path}: {name}", turned=turned)

    @property
    def has_turns(self) -> bool:
        """Whether the images were extracted with descriptors at other turns."""
        return bool(_settings(self.attributes).get("rotations", False))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _reading(self, where: Path | str) -> AbstractContextManager[None]:
        return watching_for_damage(where, "extract it again")


class FeatureWriter:
    """Adds features to a file image by image, each durable on return; one writer a file. Goes on where one stopped."""

    def __init__(self, path: Path, attributes: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Open `path` to go on with it, or create it with the root `attributes` (see `file_attributes`).

        Raises OutputError if it can't be written, another process writes it, or it was made with other attributes;
        `overwrite` starts afresh instead of the last.
        """
        self.path = Path(path)
        self._writer = HDF5Writer(self.path, attributes, overwrite=overwrite)
        try:
            with self._reading():
                differences = self._differs(attributes)
                started = not differences or self._started()
            if not started:
                self._writer.close()
                self._writer = HDF5Writer(self.path, attributes, overwrite=True)
            elif differences:
                raise OutputError(
                    f"{self.path}: holds features made with other settings ({'; '.join(differences)}); "
                    "give these again to go on, --overwrite to start afresh, or another output with -o"
                )
        except BaseException:
            self._writer.close()
            raise

    def is_complete(self, name: str, source: Source | None = None) -> bool:
        """Whether the features of an image are there. Raises ChangedImageError if `source` differs from theirs."""
        try:
            check_name(name)
        except ValueError:
            return False  # and `write` will say so
        with self._reading():
            group = member(self._writer.file, name)
            if not isinstance(group, h5py.Group) or not is_image(group, own=True):
                return False
            if source is not None and tuple(group.attrs.get("source", source)) != tuple(source):
                raise ChangedImageError(f"{name}: changed since its features were extracted")
            return True

    def write(
        self,
        name: str,
        features: StoredFeatures,
        *,
        source: Source | None = None,
        descriptor_dtype: str = "float32",
    ) -> None:
        """Add the features of one image, in place of any that are there, and make them durable.

        Raises ImageError for a name that can't be used, OutputError if the file can't be written.
        """
        try:
            check_name(name)
            self._check_nesting(name)
        except ValueError as error:
            raise ImageError(f"{name!r}: {error}") from error
        try:
            if name in self._writer.file:
                del self._writer.file[name]
            _write_group(self._writer.file.create_group(name), features, source, descriptor_dtype)
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise self._writer.failure(error) from error
        self._writer.commit()

    def close(self) -> None:
        """Close the file and let other writers in."""
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._writer.__exit__(kind, value, traceback)

    def _reading(self) -> AbstractContextManager[None]:
        return watching_for_damage(self.path, "give --overwrite to start afresh", OutputError)

    def _started(self) -> bool:
        """Whether there is anything that starting afresh would lose: images, or whatever another tool wrote."""
        file = self._writer.file
        own = "sekd_schema" in file.attrs
        return next(_images(file, own=True), None) is not None if own else len(file) > 0

    def _differs(self, attributes: Mapping[str, Any]) -> list[str]:
        """In words, where the file's attributes are not those given; the version of sekd alone changes nothing."""
        stored = plain_attributes(self._writer.file)
        if "sekd_schema" not in stored:
            return ["not a feature file of sekd"] if len(self._writer.file) else []
        old, new = _settings(stored), _settings(attributes)
        return [
            f"{name} {_short(old.get(name))} there, {_short(new.get(name))} now"
            for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name)
        ]

    def _check_nesting(self, name: str) -> None:
        parts = name.split("/")
        for length in range(1, len(parts)):
            group = self._writer.file.get("/".join(parts[:length]))
            if group is not None and (not isinstance(group, h5py.Group) or is_image(group, own=True)):
                raise ValueError(f"{'/'.join(parts[:length])!r} is an image too, so it can't be its folder")
        group = self._writer.file.get(name)
        if isinstance(group, h5py.Group) and not is_image(group, own=True) and next(_images(group, own=True), None):
            raise ValueError("it is the folder of another image too")


class ChangedImageError(ImageError):
    """An image is no longer the one whose features are stored."""


def file_attributes(*, network: str, weights_sha256: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The root attributes of a feature file: who made it, how, and what its numbers mean."""
    return {
        "sekd_schema": SCHEMA,
        "sekd_version": __version__,
        "network": network,
        "weights_sha256": weights_sha256,
        "settings": json.dumps(dict(settings), sort_keys=True),
        "pixel_convention": PIXEL_CONVENTION,
    }


def is_image(group: h5py.Group, *, own: bool) -> bool:
    """Whether a group holds an image's complete features; in a file of another tool (`own` false) all that do."""
    if own:
        return bool(group.attrs.get("complete", False))
    return all(isinstance(member(group, name), h5py.Dataset) for name in ("keypoints", "descriptors"))


def _images(group: h5py.Group, *, own: bool, prefix: str = "", above: frozenset[int] = frozenset()) -> Iterator[str]:
    """Names below a group; `above` are the addresses of its parents, so that a cycle of links ends."""
    for key in group:
        child = member(group, key)
        if not isinstance(child, h5py.Group):
            continue
        if not _is_plain(key):
            logger.warning("%s: group %r can't be an image's name; left out", group.file.filename, prefix + key)
        elif is_image(child, own=own):
            yield prefix + key
        else:
            address = h5py.h5o.get_info(child.id).addr
            if address not in above:
                yield from _images(child, own=own, prefix=f"{prefix}{key}/", above=above | {address})


def _is_plain(key: str) -> bool:
    try:
        check_name(key)
    except ValueError:
        return False
    return True


def _write_group(group: h5py.Group, features: StoredFeatures, source: Source | None, descriptor_dtype: str) -> None:
    arrays = {
        "keypoints": np.asarray(features.keypoints, dtype=np.float32),
        "scores": np.asarray(features.scores, dtype=np.float32),
        "descriptors": np.ascontiguousarray(features.descriptors.T, dtype=descriptor_dtype),
        "image_size": np.asarray(features.image_size, dtype=np.int64),
    }
    if features.scales is not None:
        arrays["scales"] = np.asarray(features.scales, dtype=np.float32)
    write_arrays(group, arrays)
    if features.scales is not None:
        group["keypoints"].attrs["uncertainty"] = float(np.mean(features.scales)) if len(features.scales) else 1.0
    if features.turned is not None:
        turned = np.ascontiguousarray(features.turned.swapaxes(1, 2), dtype=descriptor_dtype)
        write_arrays(group, {TURNED: turned}, TURNED_CHECKSUM)
    if source is not None:
        group.attrs["source"] = np.asarray(source, dtype=np.int64)
    group.attrs["complete"] = True


def _read_group(group: h5py.Group, where: str, *, turned: bool) -> StoredFeatures:
    arrays = {name: _read_array(group, name, where) for name in DATASETS if name in group}
    check_arrays(group, arrays)
    with np.errstate(over="ignore"):  # found below
        floats = {name: values.astype(np.float32, copy=False) for name, values in arrays.items()}
    keypoints, descriptors = floats["keypoints"], floats["descriptors"]
    if keypoints.ndim != 2 or keypoints.shape[1] != 2 or descriptors.ndim != 2:
        raise InputFileError(
            f"{where}: keypoints {keypoints.shape} and descriptors {descriptors.shape}, not (N, 2), (D, N)"
        )
    if not np.isfinite(keypoints).all():
        raise InputFileError(f"{where}: keypoints that are no numbers; extract it again")
    count = len(keypoints)
    scores, scales = floats.get("scores", np.ones(count, dtype=np.float32)), floats.get("scales")
    if descriptors.shape[1] != count or scores.shape != (count,) or (scales is not None and scales.shape != (count,)):
        raise InputFileError(f"{where}: not as many descriptors or scores as its {count} keypoints; extract it again")
    others = _read_turned(group, where, descriptors.shape) if turned and TURNED in group else None
    return StoredFeatures(
        keypoints=keypoints,
        scores=scores,
        descriptors=np.ascontiguousarray(descriptors.T),
        image_size=_image_size(arrays.get("image_size"), keypoints, where),
        scales=scales,
        turned=others,
    )


def _read_turned(group: h5py.Group, where: str, shape: tuple[int, ...]) -> np.ndarray:
    """(3, N, D) beside descriptors of `shape` (D, N)."""
    turned = _read_array(group, TURNED, where)
    check_arrays(group, {TURNED: turned}, TURNED_CHECKSUM)
    if turned.shape != (3, *shape):
        raise InputFileError(f"{where}: {TURNED} {turned.shape} beside descriptors {shape}; extract it again")
    return np.ascontiguousarray(turned.swapaxes(1, 2), dtype=np.float32)


def _image_size(stored: np.ndarray | None, keypoints: np.ndarray, where: str) -> tuple[int, int]:
    if stored is None:
        corner = keypoints.max(axis=0) + 0.5 if len(keypoints) else np.zeros(2)
        width, height = np.ceil(corner.clip(0, MAXIMUM_VALUES)).astype(int)
        return int(width), int(height)
    if stored.shape != (2,):
        raise InputFileError(f"{where}: image_size is {stored.shape}, not width and height; extract it again")
    return int(stored[0]), int(stored[1])


def _read_array(group: h5py.Group, name: str, where: str) -> np.ndarray:
    dataset = group[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in "iuf" or dataset.size > MAXIMUM_VALUES:
        raise InputFileError(f"{where}: {name} is no array of numbers; give a feature file")
    return np.asarray(dataset[()])


def _settings(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides the numbers in a file, flat."""
    try:
        settings = json.loads(str(attributes.get("settings", "{}")))
    except ValueError:
        settings = {}
    chosen = {name: attributes.get(name) for name in ("sekd_schema", "network", "weights_sha256")}
    return {**(settings if isinstance(settings, dict) else {}), **chosen}


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 20 else text[:12] + "..."  # a SHA-256
