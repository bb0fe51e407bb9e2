"""Which images to match: lists of pairs, read, written and made from the order of the images.

A line holds two names, with a tab between them if there is one in the line (so names may hold spaces), with white space
otherwise. Blank lines and lines that start with `#` are skipped. `./` before a name changes nothing; written before one
that starts with `#`, it keeps the line from being a comment.
"""

import codecs
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import combinations
from pathlib import Path
from typing import BinaryIO

from sekd_cli.counting import counted
from sekd_cli.errors import InputFileError, UsageError
from sekd_cli.hdf5_file import HDF5_MAGIC

Pair = tuple[str, str]


def read_pairs(source: str | Path) -> Iterator[Pair]:
    """The pairs of a file, or of standard input if `source` is `-`, line by line.

    Raises InputFileError, which names the file and the line, if there is no such file or a line holds anything but two
    names.
    """
    if str(source) == "-":
        if sys.stdin is None:
            raise UsageError("-: standard input is closed; give a file, or a list of pairs there")
        yield from parse_pairs(sys.stdin.buffer, "standard input")
        return
    try:
        with Path(source).open("rb") as stream:
            yield from parse_pairs(stream, str(source))
    except OSError as error:
        reason = error.strerror or error
        raise InputFileError(f"{source}: can't read the pairs ({reason}); give a text file, or - for stdin") from error


def parse_pairs(lines: BinaryIO | Iterable[bytes], where: str) -> Iterator[Pair]:
    """The pairs of lines of UTF-8 text; `where` names their source in errors. Raises InputFileError."""
    for number, line in enumerate(lines, start=1):
        if number == 1 and line.startswith(HDF5_MAGIC[:4]):
            raise InputFileError(f"{where}: an HDF5 file; give a list of pairs, as sekd pairs makes of it")
        if b"\0" in line:
            raise InputFileError(f"{where}, line {number}: not UTF-8 text; save it as UTF-8, two names a line")
        line = line.removeprefix(codecs.BOM_UTF8).rstrip(b"\r\n")  # noqa: PLW2901
        fields = line.split(b"\t") if b"\t" in line else line.split()  # at ASCII's white space only
        if not line.strip() or line.startswith(b"#"):
            continue
        names = [field.decode(errors="surrogateescape").removeprefix("./") for field in fields]
        if len(names) != 2 or not all(names):
            raise InputFileError(f"{where}, line {number}: {_complaint(line)}")
        yield names[0], names[1]


def _complaint(line: bytes) -> str:
    text = line.decode(errors="replace")
    shown = repr(text if len(text) <= 60 else text[:57] + "...")
    if b"\t" in line:
        return f"{shown} is not two names with one tab between them; write it anew"
    count = len(line.split())
    hint = "put a tab between names that hold spaces" if count > 2 else "put a space or a tab between the two"
    return f"{shown} is {counted(count, 'name')}, not two; {hint}"


def format_pair(pair: Pair) -> str:
    """The line that `read_pairs` reads as this pair. Raises ValueError for a name that no line can hold."""
    for name in pair:
        if re.search(r"[\t\n\r\0]", name) or not name:
            raise ValueError(f"{name!r}: a list of pairs can't hold tabs, line ends or empty names; rename the image")
    first, second = ("./" + name if name.startswith(("#", "./", codecs.BOM_UTF8.decode())) else name for name in pair)
    separator = "\t" if re.search(r"\s", first + second) else " "  # COLMAP splits at spaces alone
    return f"{first}{separator}{second}\n"


def natural_order(names: Iterable[str]) -> list[str]:
    """Names sorted with the numbers in them by value: frame9 before frame10."""
    return sorted(names, key=lambda name: ([_sort_key(part) for part in re.split(r"(\d+)", name)], name))


def _sort_key(part: str) -> tuple[int, str]:
    digits = part.lstrip("0")
    return (len(digits), digits) if part.isdecimal() else (0, part)  # text and numbers alternate, so like meets like


def exhaustive(names: Iterable[str]) -> Iterator[Pair]:
    """Every pair of different images once, in natural order."""
    return combinations(natural_order(set(names)), 2)


def split_queries(names: Iterable[str], patterns: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names that fit one of the patterns, whose `*` stands for any text, folders too, and the others; both in order."""
    ordered = natural_order(set(names))
    queries = [name for name in ordered if any(fnmatchcase(name, pattern) for pattern in patterns)]
    fitting = set(queries)
    return queries, [name for name in ordered if name not in fitting]


def sequential(names: Iterable[str], overlap: int, *, loop: bool = False) -> Iterator[Pair]:
    """Each image with the `overlap` images after it in natural order; with `loop` the first ones follow the last."""
    ordered = natural_order(set(names))
    count = len(ordered)
    for first in range(count):
        for step in range(1, min(overlap, count - 1) + 1):
            second = first + step
            if second < count:
                yield ordered[first], ordered[second]
            elif loop and (second - count) + overlap < first:  # else the pair came up already, from its other end
                yield ordered[first], ordered[second - count]
