"""`sekd info`: what a file holds."""

import json
import os
from pathlib import Path
from typing import Any

import click

from sekd_cli.commands.options import PATH

BLOCKS = "▁▂▃▄▅▆▇█"
DISTRIBUTIONS = ("keypoints_per_image", "matches_per_pair", "rows_per_dataset")
NAMES_SHOWN = 5


@click.command()
@click.argument("file", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON.")
def info(file: Path, as_json: bool) -> None:
    """Say what a feature file, a match file or a weights file holds.

    \b
    sekd info feats.h5
    sekd info matches.h5 --json
    """  # noqa: D301 - click's mark for lines that stay as they are
    from sekd_cli.file_info import file_info  # noqa: PLC0415 - loads h5py, which --help needs not

    facts = file_info(file)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    click.echo(_described(facts))


def _described(facts: dict[str, Any]) -> str:
    """The facts, one a line, names and values in two columns."""
    lines = [_plain(os.fsencode(facts["file"]).decode(errors="backslashreplace"))]
    for name, value in facts.items():
        if name != "file" and (value not in (None, [], {}) or name == "incomplete"):
            lines += _lines(name, value)
    return "\n".join(lines)


def _lines(name: str, value: Any) -> list[str]:
    if name in DISTRIBUTIONS:
        bars = [_line("", _bars(value))] if len(value["histogram"]) > 1 else []
        return [_line(name, _spread(value)), *bars]
    if name == "bytes":
        return [_line("size", _size(value))]
    if name == "descriptors":
        return [_line(name, ", ".join(f"{one['dim']} x {one['dtype']}" for one in value))]
    if isinstance(value, list):
        shown = ", ".join(_plain(one) for one in value[:NAMES_SHOWN])
        more = f" and {len(value) - NAMES_SHOWN:,} more" if len(value) > NAMES_SHOWN else ""
        return [_line(name, f"{len(value):,}{': ' if value else ''}{shown}{more}")]
    if isinstance(value, dict):
        pairs = [f"{key.replace('_', ' ')} {_plain(one)}" for key, one in value.items()]
        return [_line(name if index == 0 else "", pair) for index, pair in enumerate(pairs)]
    return [_line(name, _plain(value))]


def _line(name: str, text: str) -> str:
    return f"  {name.replace('_', ' '):<22}{text}".rstrip()


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    text = "none" if value is None else str(value)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)  # names of files


def _spread(facts: dict[str, Any]) -> str:
    return "  ".join(f"{name} {facts[name]:,}" for name in ("min", "p10", "median", "p90", "max", "mean"))


def _bars(facts: dict[str, Any]) -> str:
    """The histogram from least to largest as blocks; none too low to be seen."""
    tallest = max(facts["histogram"])
    return "".join(" " if not n else BLOCKS[min(7, n * 8 // (tallest + 1))] for n in facts["histogram"])


def _size(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
