"""Reads what other tools wrote in the layouts of the IMC benchmark and of Kaggle's baselines (see `layouts`)."""

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Self

import h5py
import numpy as np

from sekd_cli.errors import InputFileError, UsageError
from sekd_cli.export.layouts import FEATURE_FILES, PairMatches, key_of
from sekd_cli.hdf5_file import names_in, open_for_reading, read_numbers, watching_for_damage
from sekd_cli.image_search import find_images
from sekd_cli.images import read_image_size
from sekd_cli.pairs import Pair
from sekd_cli.stored_features import StoredFeatures, are_places, smallest_size


class FlatFolder:
    """Features and matches in a folder of flat files. A `FeatureSource`."""

    def __init__(self, folder: Path, images: Path | None = None) -> None:
        """images: the folder of the photographs, from which names (folder, extension) and sizes come; without it, keys
        are the names.

        Raises InputFileError if there are no keypoints, or neither descriptors nor matches, or a file is damaged;
        UsageError if two images could have the same key, or two keys mean the same image.
        """  # noqa: D205 - one sentence
        self.folder = folder
        self.images = images
        self._files: dict[str, h5py.File] = {}
        self.paths: list[Path] = []  # of all files
        for kind in (*FEATURE_FILES, "matches"):
            path = folder / f"{kind}.h5"
            if os.path.exists(path) or not os.access(folder, os.X_OK):  # opening it tells why it can't
                self._files[kind] = open_for_reading(path, kind)
                self.paths.append(path)
        self.has_features = "descriptors" in self._files
        self.has_matches = "matches" in self._files
        wanting = "keypoints.h5" if "keypoints" not in self._files else "descriptors.h5 or matches.h5"
        if "keypoints" not in self._files or not (self.has_features or self.has_matches):
            self.close()
            raise InputFileError(f"{folder}: no {wanting} in it; give a folder in the imc or kaggle layout")
        with self._reading("keypoints"):
            file = self._files["keypoints"]
            flat = {key: isinstance(file[key], h5py.Dataset) for key in names_in(file)}
        self.nested = [key for key in flat if not flat[key]]  # groups, which are no image's here
        self._keys = _names_of([key for key in flat if flat[key]], images)

    def names(self) -> list[str]:
        """Names of all images with keypoints."""
        return list(self._keys)

    @property
    def unknown(self) -> list[str]:
        """Keys for which `images` holds no photograph; they are names as they are."""
        if self.images is None:
            return []
        return [name for name in self._keys if not os.path.isfile(self.images / name)]

    def read(self, name: str) -> StoredFeatures:
        """The features of one image. Raises InputFileError if they are damaged, ImageError if the photograph is."""
        key = self._keys[name]
        found = {kind: self._array(kind, key) for kind in FEATURE_FILES if kind in self._files}
        keypoints, descriptors = found["keypoints"], found["descriptors"]
        where = f"{self.folder}: {key}"
        if keypoints.ndim != 2 or keypoints.shape[1] < 2 or descriptors.ndim != 2:
            shapes = f"keypoints {keypoints.shape} and descriptors {descriptors.shape}, not (N, 2), (N, D)"
            raise InputFileError(f"{where}: {shapes}; mend the files")
        count = len(keypoints)
        values = [found[kind].size for kind in ("scores", "scales") if kind in found]
        if any(size != count for size in (len(descriptors), *values)):
            raise InputFileError(f"{where}: not as many descriptors or scores as its {count} keypoints; mend the files")
        xy = keypoints[:, :2]
        if not are_places(xy):
            raise InputFileError(f"{where}: keypoints that are not finite, or in no image; mend the files")
        return StoredFeatures(
            keypoints=xy,
            scores=found.get("scores", np.ones(count, dtype=np.float32)).reshape(count),
            descriptors=descriptors,
            image_size=smallest_size(xy) if (size := self._image_size(name)) is None else size,
            size_stated=size is not None,
            scales=found["scales"].reshape(count) if "scales" in found else None,
        )

    def count(self, name: str) -> int:
        """The number of keypoints of an image."""
        with self._reading("keypoints"):
            return int(self._files["keypoints"][self._keys[name]].shape[0])

    def matches(self) -> Iterator[PairMatches]:
        """The matches of all pairs. Raises InputFileError if they are damaged or name other images."""
        names = {key: name for name, key in self._keys.items()}
        with self._reading("matches"):
            for place, dataset in self._match_datasets():
                first, second = self._split(place, names)
                indices = read_numbers(self._files["matches"], place).astype(np.int64)
                if not indices.size:
                    indices = indices.reshape(0, 2)  # some tools write (0,)
                elif "/" not in place:
                    indices = indices.T  # the benchmark's are (2, M), kaggle's (M, 2)
                if indices.ndim != 2 or indices.shape[1] != 2:
                    raise ValueError(f"{place} is {dataset.shape}, no list of pairs of keypoints")
                counts = [self.count(names[key]) for key in (first, second)]
                if indices.size and (indices.min() < 0 or (indices.max(axis=0) >= counts).any()):
                    raise ValueError(f"{place} refers to keypoints that are not in keypoints.h5")
                yield PairMatches((names[first], names[second]), indices)

    def close(self) -> None:
        """Close all files."""
        for file in self._files.values():
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _match_datasets(self) -> Iterator[tuple[str, h5py.Dataset]]:
        """Every dataset of matches and its place: `A-B`, or `A/B`."""
        for key in names_in(self._files["matches"]):
            value = self._files["matches"][key]
            if isinstance(value, h5py.Group):
                for second in names_in(value):
                    if isinstance(dataset := value[second], h5py.Dataset):
                        yield f"{key}/{second}", dataset
            else:
                yield key, value

    def _split(self, place: str, known: Mapping[str, str]) -> Pair:
        """The two keys in the place of a dataset; keys may hold `-` as well."""
        separator = "/" if "/" in place else "-"
        parts = place.split(separator)
        halves = [(separator.join(parts[:i]), separator.join(parts[i:])) for i in range(1, len(parts))]
        fitting = [pair for pair in halves if pair[0] in known and pair[1] in known]
        if len(fitting) == 1:
            return fitting[0]
        problem = "names images without keypoints" if not fitting else "can be read as two pairs of images"
        raise ValueError(f"{place} {problem}")

    def _image_size(self, name: str) -> tuple[int, int] | None:
        if self.images is not None and os.path.isfile(self.images / name):
            return read_image_size(self.images / name, max_pixels=0)
        return None

    def _array(self, kind: str, key: str) -> np.ndarray:
        with self._reading(kind):
            return read_numbers(self._files[kind], key).astype(np.float32, copy=False)

    def _reading(self, kind: str) -> AbstractContextManager[None]:
        return watching_for_damage(f"{self.folder / kind}.h5", "mend the files")


def _names_of(keys: list[str], images: Path | None) -> dict[str, str]:
    """Keys by the name of the photograph below `images` that each stands for, or by the key itself."""
    by_layout: dict[str, dict[str, list[str]]] = {"kaggle": {}, "imc": {}}
    for entry in find_images([images]) if images is not None else ():
        for layout, owners in by_layout.items():
            owners.setdefault(key_of(entry.name, layout), []).append(entry.name)
    names: dict[str, str] = {}
    for key in keys:
        found = by_layout["kaggle"].get(key) or by_layout["imc"].get(key) or [key]
        if len(found) > 1:
            raise UsageError(f"{key} could be {found[0]} or {found[1]}; give --images with only one of them")
        if (other := names.setdefault(found[0], key)) != key:
            raise UsageError(f"{other} and {key} would both be {found[0]}; take one of them out, or leave out --images")
    return names
