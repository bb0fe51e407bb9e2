"""`sekd pairs`: which images to match with which."""

import logging
import os
import sys
from collections.abc import Iterable, Iterator
from itertools import chain, product
from pathlib import Path
from typing import BinaryIO

import click

from sekd_cli.commands.options import FILE, FOLDER, THREADS
from sekd_cli.errors import SOME_FAILED, ImageError, NothingToDoError, UsageError

logger = logging.getLogger(__name__)

MOST_PROCESSES = 16  # by default: each takes 0.1 GB and more


@click.command()
@click.argument("source", metavar="IMAGES_OR_FEATS...", nargs=-1, required=True)
@click.option("--exhaustive", is_flag=True, help="Every image with every other; the default.")
@click.option("--sequential", type=click.IntRange(1), metavar="K", help="Each with the K that follow it.")
@click.option("--loop", is_flag=True, help="With --sequential: the first images follow the last.")
@click.option("--nearest", type=click.IntRange(1), metavar="K", help="Each with the K that look most like it.")
@click.option(
    "--queries",
    multiple=True,
    metavar="PATTERN",
    help="Only pairs of an image whose name fits, first, with one whose name doesn't; * fits slashes too; repeat.",
)
@click.option("--root", type=FOLDER, help="Folder that image names are relative to.")
@click.option("--threads", type=THREADS, help="With --nearest: CPU cores to use; default: all, up to 16.")
@click.option("--output", "-o", type=FILE, help="A file; default, or -: standard output.")
@click.option("--overwrite", is_flag=True, help="With -o: replace a file that is there.")
def pairs(
    source: tuple[str, ...],
    *,
    exhaustive: bool,
    sequential: int | None,
    loop: bool,
    nearest: int | None,
    queries: tuple[str, ...],
    root: Path | None,
    threads: int | None,
    output: Path | None,
    overwrite: bool,
) -> int:
    """List pairs of images to match, two names a line.

    \b
    sekd pairs photos --sequential 10 --loop > pairs.txt
    sekd pairs feats.h5 --nearest 20 | sekd match - --features feats.h5
    sekd pairs feats.h5 --nearest 20 --queries 'new/*' > localise.txt

    Give photographs (folders, files, patterns, - for a list of paths on stdin), or a feature file, which stands for its
    images; --nearest needs that. Images are sorted by name, numbers in names by value. With several choices, all their
    pairs are listed, each once. A space separates two names, or a tab if one of them holds spaces.
    """  # noqa: D301 - click's mark for lines that stay as they are
    from sekd_cli.new_file import new_file  # noqa: PLC0415
    from sekd_cli.pairs import exhaustive as every_pair  # noqa: PLC0415
    from sekd_cli.pairs import sequential as neighbours  # noqa: PLC0415
    from sekd_cli.pairs import split_queries  # noqa: PLC0415

    output = None if str(output) == "-" else output
    if overwrite and output is None:
        raise UsageError("--overwrite: only with -o")
    if sys.stdout is None and output is None:
        raise UsageError("standard output is closed; give -o FILE")
    for wrong, message in (
        (loop and not sequential, "--loop: only with --sequential"),
        (threads and not nearest, "--threads: only with --nearest"),
        (queries and sequential, "--queries: not with --sequential; give --nearest, or neither for all pairs"),
    ):
        if wrong:
            raise UsageError(message)
    feature_file = _feature_file(source, root, nearest)
    names, failures = (_names_in(feature_file), 0) if feature_file else _names_of_images(source, root)
    if len(names) < 2:
        raise NothingToDoError(f"{', '.join(source)}: {'one image' if names else 'no images'}; a pair takes two")
    asked, others = split_queries(names, queries)
    if queries and not (asked and others):
        raise NothingToDoError(f"--queries {' '.join(queries)}: {'all images fit' if asked else 'no image fits'}")
    chosen: list[Iterator[tuple[str, str]]] = []
    unreadable: dict[str, str] = {}
    if exhaustive or not (sequential or nearest):
        chosen.append(product(asked, others) if queries else every_pair(names))
    if sequential:
        chosen.append(neighbours(names, sequential, loop=loop))
    if nearest and feature_file:
        chosen.append(_nearest(feature_file, others, nearest, unreadable, queries=asked, threads=threads))
    every, repeats = chain.from_iterable(chosen), len(chosen) > 1
    if output is None:
        failures += _write(every, sys.stdout.buffer, repeats=repeats)  # names may hold bytes that are no text
    else:
        with new_file(output, overwrite=overwrite) as path, path.open("wb") as stream:
            failures += _write(every, stream, repeats=repeats)
        click.echo(os.fsencode(output))
    for reason in unreadable.values():
        logger.error("%s", reason)
    return SOME_FAILED if failures or unreadable else 0


def _feature_file(source: tuple[str, ...], root: Path | None, nearest: int | None) -> Path | None:
    """The feature file, if one is given. Raises UsageError for what doesn't go with one, or without."""
    feature_file = next((Path(one) for one in source if _is_hdf5(Path(one))), None)
    if feature_file and len(source) > 1:
        raise UsageError(f"{feature_file}: give one feature file and nothing else, or photographs")
    if feature_file and root:
        raise UsageError(f"--root: only with photographs; the names are those in {feature_file}")
    if nearest and feature_file is None:
        raise UsageError("--nearest: needs one feature file; run sekd extract first, then sekd pairs feats.h5")
    return feature_file


def _write(pairs: Iterable[tuple[str, str]], output: BinaryIO, *, repeats: bool) -> int:
    """Write pairs, each once even if it `repeats`; returns how many names can't be written."""
    from sekd_cli.pairs import format_pair  # noqa: PLC0415

    seen: set[frozenset[str]] = set()
    unwritable: set[str] = set()
    for pair in pairs:
        if repeats:
            if frozenset(pair) in seen:
                continue
            seen.add(frozenset(pair))
        try:
            output.write(format_pair(pair).encode(errors="surrogateescape"))  # as read_pairs has it, in any locale
        except ValueError as error:
            unwritable.add(str(error))
    output.flush()
    for message in sorted(unwritable):
        logger.error("%s", message)
    return len(unwritable)


def _is_hdf5(path: Path) -> bool:
    from sekd_cli.hdf5_file import HDF5_MAGIC, HDF5_SUFFIXES  # noqa: PLC0415

    if str(path) == "-":
        return False  # standard input, even where a file has that name
    by_name = path.suffix.lower() in HDF5_SUFFIXES  # a feature file that is missing or not readable, or an image
    if not os.path.isfile(path):
        return by_name
    try:
        with path.open("rb") as stream:
            return stream.read(len(HDF5_MAGIC)) == HDF5_MAGIC
    except OSError:
        return by_name  # of images only the names are needed


def _names_in(feature_file: Path) -> list[str]:
    from sekd_cli.feature_file import FeatureReader  # noqa: PLC0415

    with FeatureReader(feature_file) as reader:
        return reader.names()


def _names_of_images(source: tuple[str, ...], root: Path | None) -> tuple[list[str], int]:
    """Names of images, and how many of those given are no files."""
    from sekd_cli.image_opening import check_file  # noqa: PLC0415
    from sekd_cli.image_search import find_images, given_paths  # noqa: PLC0415

    entries = find_images(given_paths(source), root=root)
    names = []
    for entry in entries:
        try:
            check_file(entry.path)
            names.append(entry.name)
        except ImageError as error:
            logger.error("%s", error)
    return names, len(entries) - len(names)


def _nearest(
    feature_file: Path,
    names: list[str],
    count: int,
    unreadable: dict[str, str],
    *,
    queries: list[str],
    threads: int | None,
) -> Iterator[tuple[str, str]]:
    from sekd_cli.commands.progress import progress_bar  # noqa: PLC0415
    from sekd_cli.cores import available_cores  # noqa: PLC0415
    from sekd_cli.device import set_threads  # noqa: PLC0415
    from sekd_cli.feature_file import FeatureReader  # noqa: PLC0415
    from sekd_cli.retrieval import nearest  # noqa: PLC0415
    from sekd_cli.workers import interrupts_later  # noqa: PLC0415

    set_threads(1)  # several wait for each other longer than its many small products take
    processes = threads or min(MOST_PROCESSES, available_cores())
    steps = len(names) + len(queries) + len(queries or names)
    with interrupts_later(), FeatureReader(feature_file) as reader, progress_bar("read, compare", steps) as bar:
        wanted = nearest(reader, names, count, unreadable, bar.advance, queries=queries, processes=processes)
        found = list(wanted)
    yield from found
