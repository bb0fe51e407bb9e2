"""Which images are meant: files, folders, patterns; each with the name under which its features are kept."""

import codecs
import glob
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sekd_cli.errors import UsageError

logger = logging.getLogger(__name__)

COMMON = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".pnm", ".bmp", ".gif"}
RARE = {".jpe", ".jfif", ".mpo", ".dib", ".jp2", ".j2k", ".avif", ".tga", ".heic", ".heif", ".hif"}
SUFFIXES = frozenset(COMMON | RARE)
"""What counts as an image in a folder; HEIC takes an extra, and to say so is better than to leave it out."""

RAW = frozenset({".arw", ".cr2", ".cr3", ".dng", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".srw"})
VIDEO = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mts", ".webm"})
"""What cameras put beside photographs; left out of a folder, and told, as nobody else would miss them."""


@dataclass(frozen=True)
class ImageEntry:
    """An image to be read, and its name in feature files: its POSIX path relative to the image root."""

    path: Path
    name: str


def given_paths(arguments: Sequence[str]) -> list[str]:
    """The paths that arguments mean, of which `-` stands for a list on standard input.

    There a line is a path; or each ends with a zero byte (find -print0), which lets names hold line breaks. Raises
    UsageError if standard input is closed, or in UTF-16, and for an empty argument.
    """
    if "" in arguments:  # for Path it is the current folder
        raise UsageError("an empty path, as of a variable that isn't set; give photographs, or . for this folder")
    return [path for argument in arguments for path in (_listed_paths() if argument == "-" else [argument])]


def _listed_paths() -> list[str]:
    if sys.stdin is None:
        raise UsageError("-: standard input is closed; give images, or a list of them there")
    content = sys.stdin.buffer.read().removeprefix(codecs.BOM_UTF8)
    parts = content.split(b"\0" if b"\0" in content else b"\n")
    # A line end alone between zero bytes is UTF-16's without a mark; split at these it may name all of /.
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\n" in parts:
        raise UsageError("-: the list on standard input is in UTF-16; save it as UTF-8, a path a line")
    return [os.fsdecode(line) for line in (part.rstrip(b"\r") for part in parts) if line]


def find_images(paths: Sequence[str | Path], *, root: Path | None = None) -> list[ImageEntry]:
    """All images that `paths` mean, sorted by name, each once.

    A folder stands for the images in it and below, by suffix, hidden ones left out; a file for itself, whatever its
    suffix; a pattern for the images that it matches (`**` for any folders). A path that does not exist becomes an
    entry as well: reading it says so, and the others go on. Names are relative to the folder given, to the part of a
    pattern before its first wildcard, or for a file to its own folder; or all of them to `root`.

    Raises UsageError if two images get the same name, or one lies outside `root`.
    """
    found: dict[str, Path] = {}
    for given in paths:
        for path, own_root in _expand(Path(given)):
            name = _name(path, root or own_root)
            other = found.setdefault(name, path)
            if other != path and not _same_file(other, path):
                raise UsageError(f"{other} and {path} would both be named {name}; give --root, a folder above both")
    return [ImageEntry(found[name], name) for name in sorted(found)]


def _expand(given: Path) -> Iterator[tuple[Path, Path]]:
    """Image files, each with the folder that its name is relative to."""
    if _is_folder(given):
        yield from ((path, given) for path in _images_below(given))
    elif os.path.lexists(given) or not glob.has_magic(str(given)):
        yield given, given.parent
    else:
        literal = _literal_part(given)
        matches = glob.glob(str(given), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
        if not matches:
            yield given, given.parent
        for match in _each_folder_once(map(Path, sorted(matches))):
            if _is_folder(match):
                if given.name != "**" and given.parts[-2:] != ("**", "*"):  # these match the files in it as well
                    yield from ((path, literal) for path in _images_below(match))
            elif match.suffix.lower() in SUFFIXES or (given.suffix and match.suffix == given.suffix):
                yield match, literal


def _each_folder_once(matches: Iterable[Path]) -> Iterator[Path]:
    """Matches of a pattern without those in a folder that came already by a shorter way: links may form a circle."""
    real, seen = cache(os.path.realpath), dict[str, Path]()
    for match in sorted(matches, key=lambda match: len(match.parts)):
        if seen.setdefault(real(match.parent), match.parent) == match.parent:
            yield match


def _is_folder(path: Path) -> bool:
    """False as well where that can't be looked up: reading it tells why."""
    return os.path.isdir(path)


def _literal_part(pattern: Path) -> Path:
    parts = pattern.parts
    wild = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:wild])


def _images_below(folder: Path) -> Iterator[Path]:
    """Image files in a folder and below. Each real folder is entered once, so links that form a circle end."""
    entered: set[tuple[int, int]] = set()
    pending, linked = [folder], list[Path]()
    left_out = Counter[str]()
    while pending or linked:
        current = pending.pop() if pending else linked.pop()  # linked folders last: real paths give the names
        try:
            status = current.stat()
            if (status.st_dev, status.st_ino) in entered:
                logger.debug("%s: entered already through another link", current)
                continue
            entered.add((status.st_dev, status.st_ino))
            children = sorted(os.scandir(current), key=lambda child: child.name, reverse=True)
        except OSError:
            yield current  # not a folder that can be listed: reading it tells why
            continue
        for child in children:
            path = current / child.name
            if child.name.startswith("."):
                continue
            if child.is_dir(follow_symlinks=False):
                pending.append(path)
            elif _is_folder(path):
                linked.append(path)
            elif (suffix := path.suffix.lower()) in SUFFIXES:
                yield path
            elif suffix in RAW | VIDEO:
                left_out[suffix] += 1
    if left_out:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(left_out.items()))
        logger.info("%s: left out %s, which sekd doesn't read; make JPEGs of those that you need", folder, kinds)


def _name(path: Path, root: Path) -> str:
    relative = Path(os.path.relpath(path, root))
    if ".." in relative.parts:  # unless links are followed, as of a home that is one
        relative = Path(os.path.relpath(os.path.realpath(path.parent), os.path.realpath(root)), path.name)
    if ".." in relative.parts:
        raise UsageError(f"{path}: not below {root}; give another --root")
    return relative.as_posix()


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return os.path.abspath(one) == os.path.abspath(other)  # noqa: PTH100 - both may be missing
