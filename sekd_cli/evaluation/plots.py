"""Curves and bars of several methods in one picture, by matplotlib (extra `[plot]`)."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sekd_cli.errors import MissingExtraError, OutputError, UsageError
from sekd_cli.new_file import new_file

PANEL_INCHES = 4.0
NEED_TEX = {"pgf"}


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One set of axes: curves (label -> x values, y values) or bars (label -> value)."""

    title: str
    x_label: str = ""
    y_label: str = ""
    curves: dict[str, tuple[list[float], list[float]]] = field(default_factory=dict)
    bars: dict[str, float] = field(default_factory=dict)


def check_plot(path: Path) -> Any:
    """`matplotlib.figure`, which draws without a display, if it can write this kind of file.

    Raises MissingExtraError, UsageError for a suffix that isn't known, OutputError where there is no such folder.
    """
    try:
        import matplotlib.figure  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot") from error
    known = matplotlib.figure.Figure().canvas.get_supported_filetypes().keys() - NEED_TEX
    if path.suffix.lower().removeprefix(".") not in known:
        raise UsageError(f"--plot {path}: the name must end in one of .{', .'.join(sorted(known))}")
    if not path.parent.is_dir():
        raise OutputError(f"--plot {path}: no folder {path.parent}; make it first")
    return matplotlib.figure


def draw(panels: list[Panel], path: Path) -> None:
    """Write the panels side by side; the name's suffix says the format (png, pdf, svg). Raises as `check_plot`."""
    figure = check_plot(path).Figure(figsize=(PANEL_INCHES * len(panels), PANEL_INCHES), layout="constrained")
    for panel, axes in zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True):
        _draw_panel(panel, axes)
    with new_file(path, overwrite=True) as temporary:
        figure.savefig(temporary, dpi=150, format=path.suffix.lower().removeprefix("."))


def _draw_panel(panel: Panel, axes: Any) -> None:
    axes.set_title(panel.title)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    lines = [axes.plot(x, y)[0] for x, y in panel.curves.values()]
    for index, (label, value) in enumerate(panel.bars.items()):
        drawn = axes.bar(_as_it_is(label), value, color=f"C{index % 10}")
        axes.bar_label(drawn, fmt="%.4g")
    if panel.curves:
        axes.grid(alpha=0.3)
        axes.legend(lines, map(_as_it_is, panel.curves))
    elif panel.bars:
        axes.margins(y=0.1)  # room for the numbers
        axes.tick_params(axis="x", rotation=30)


def _as_it_is(label: str) -> str:
    """Text that matplotlib doesn't take for a formula."""
    return label.replace("$", r"\$")
