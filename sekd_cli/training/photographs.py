"""Photographs decoded once into one memory-mapped file, so that a hundred thousand need no memory."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import cv2
import numpy as np
import torch
from torch import Tensor

from sekd_cli.config import ViewSettings
from sekd_cli.counting import counted
from sekd_cli.errors import ImageError, NothingToDoError
from sekd_cli.image_search import ImageEntry
from sekd_cli.images import read_image
from sekd_cli.level_sizes import largest_size
from sekd_cli.new_file import new_file

logger = logging.getLogger(__name__)

SHORTEST_EDGE = 96  # pixels, once shrunk; smaller photographs have no room for two views


class Photographs:
    """A built cache: `photographs[i]` is a colour photograph (3, H, W) uint8. Cheap to open in every process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with np.load(folder / "photographs.npz", allow_pickle=False) as index:
            self.offsets: np.ndarray = index["offsets"]  # (n,) bytes
            self.sizes: np.ndarray = index["sizes"]  # (n, 2) width, height
        self._bytes = np.memmap(folder / "photographs.bin", dtype=np.uint8, mode="r")

    def __reduce__(self) -> tuple[type["Photographs"], tuple[Path]]:
        """For processes that aren't forked: a memory map would be sent as all that the file holds."""
        return Photographs, (self.folder,)

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def whole(self) -> bool:
        """Whether all pixels are there, none of them cut off."""
        return bool(self._bytes.size == 3 * self.sizes.prod(axis=1).sum())

    @property
    def megabytes(self) -> float:
        """Size of the cache on disk."""
        return self._bytes.size / 1e6

    def digest(self) -> str:
        """SHA-256 of which photographs these are: the sizes of the files in their order, and their sizes here."""
        files = json.loads((self.folder / "photographs.json").read_text(encoding="utf-8"))["files"]
        bytes_of_each = json.dumps([size for _, size, *_ in files]).encode()  # not where they lie, which may change
        return hashlib.sha256(bytes_of_each + self.sizes.tobytes()).hexdigest()

    def __getitem__(self, index: int) -> Tensor:
        width, height = (int(edge) for edge in self.sizes[index])
        start = int(self.offsets[index])
        return torch.from_numpy(self._bytes[start : start + 3 * height * width].reshape(3, height, width).copy())


def cache_photographs(
    entries: Iterable[ImageEntry], folder: Path, longest_edge: int, progress: Callable[[], None] = lambda: None
) -> Photographs:
    """Decode photographs into `folder`, shrunk to `longest_edge` pixels; broken ones are reported once and left out.

    A finished cache of the same files and size is used as it is; another one, or one of which a part is gone, is
    replaced, but whoever has it open goes on with what it held. Raises NothingToDoError if none can be read,
    OutputError if `folder` can't be written.
    """
    entries = list(entries)
    key = {"longest_edge": longest_edge, "files": [_identity(entry.path) for entry in entries]}
    key_file = folder / "photographs.json"
    if (finished := _finished_cache(folder, key)) is not None:
        return finished
    offsets, sizes, end = [], [], 0
    bytes_file, index_file = folder / "photographs.bin", folder / "photographs.npz"
    with new_file(bytes_file, overwrite=True) as new, new.open("wb") as stream:  # a run may have the old one mapped
        key_file.unlink(missing_ok=True)
        for entry in entries:
            try:
                pixels = _colour(entry.path, longest_edge)
            except ImageError as error:
                logger.warning("left out: %s", error)
                continue
            finally:
                progress()
            stream.write(pixels.tobytes())
            offsets.append(end)
            sizes.append((pixels.shape[2], pixels.shape[1]))
            end += pixels.size
        if not offsets:
            what = "the reasons are above" if entries else "give --data a folder of images"
            raise NothingToDoError(f"no photograph to learn from; {what}")
    with new_file(index_file, overwrite=True) as new, new.open("wb") as stream:
        np.savez(stream, offsets=np.array(offsets, np.int64), sizes=np.array(sizes, np.int64))
    with new_file(key_file, overwrite=True) as new:  # last: the cache is whole
        new.write_text(json.dumps(key), encoding="utf-8")
    logger.info("%s in %s, %.0f MB", counted(len(offsets), "photograph"), bytes_file, end / 1e6)
    return Photographs(folder)


def _finished_cache(folder: Path, key: dict[str, Any]) -> Photographs | None:
    """The cache of these photographs that `folder` holds; None if it is of others, or a file is missing or damaged."""
    try:
        if (folder / "photographs.json").read_text(encoding="utf-8") != json.dumps(key):
            return None
        photographs = Photographs(folder)
    except (OSError, ValueError, EOFError, KeyError, BadZipFile):
        return None
    return photographs if photographs.whole else None


def _identity(path: Path) -> tuple[str, int, int]:
    """Where a file really is, how large, and when it was changed."""
    try:
        status = path.stat()
    except OSError:
        return str(path), -1, 0
    return os.path.realpath(path), status.st_size, status.st_mtime_ns


def _colour(path: Path, longest_edge: int) -> np.ndarray:
    """(3, H, W) uint8, at most `longest_edge` pixels along either side."""
    enough = partial(largest_size, settings=ViewSettings(max_size=longest_edge))
    photograph = read_image(path, colour=True, enough=enough)
    width, height = photograph.upright_size
    size = enough(width, height)
    if min(size) < SHORTEST_EDGE:
        shrunk = f", shrunk to {size[0]}x{size[1]}," * (size != (width, height))
        there = f"{width}x{height} pixels{shrunk}"
        least = f"give at least {SHORTEST_EDGE} along each side"
        remedy = least if min(width, height) < SHORTEST_EDGE else "cut it into parts"
        raise ImageError(f"{path}: {there} are too few; {remedy}")
    pixels = photograph.pixels
    if pixels.shape[1::-1] != size:
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
