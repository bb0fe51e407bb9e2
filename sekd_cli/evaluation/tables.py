"""Figures side by side: one table for people (terminal, Markdown) and the full numbers for programs (JSON, CSV)."""

import csv
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """A column for people: how its cell is made of a row's figures."""

    header: str
    cell: Callable[[Row], str]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of figures under columns for people; programs get every figure of the rows."""

    title: str
    columns: tuple[Column, ...]
    rows: list[Row]

    def cells(self) -> list[list[str]]:
        """The table's body, as text."""
        return [[column.cell(row) for column in self.columns] for row in self.rows]

    def markdown(self) -> str:
        """A GitHub table: the first column to the left, the others to the right."""
        rule = ["---"] + ["---:"] * (len(self.columns) - 1)
        lines = [[column.header for column in self.columns], rule, *self.cells()]
        return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)

    def csv(self) -> str:
        """All figures, a header line first."""
        stream = io.StringIO()
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        writer = csv.DictWriter(stream, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return stream.getvalue()


def plain(value: Any) -> Any:
    """A value that strict JSON can hold: no NaN and no infinity (null instead)."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def text(key: str, header: str) -> Column:
    """A name."""
    return Column(header, lambda row: str(row[key]))


def mark(key: str, header: str) -> Column:
    """`yes` where the figure is true."""
    return Column(header, lambda row: "yes" if row[key] else "")


def number(key: str, header: str, digits: int = 0) -> Column:
    """A number with so many digits; a dash where there is none."""
    return Column(header, lambda row: _rounded(row.get(key), 1, digits))


def percent(keys: str | tuple[str, ...], header: str) -> Column:
    """Fractions in percent, several divided by slashes."""
    names = (keys,) if isinstance(keys, str) else keys
    return Column(header, lambda row: "/".join(_rounded(row.get(name), 100, 1) for name in names))


def _rounded(value: float | None, factor: float, digits: int) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{value * factor:.{digits}f}"
