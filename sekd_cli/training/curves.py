"""Curves of a run, drawn by Pillow, so that a report needs no extra."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 760, 400  # pixels of a panel
LEFT, RIGHT, TOP, BOTTOM = 72, 24, 74, 44  # margins of its axes
FINER = 2  # lines are drawn so many times larger and then shrunk: they have no steps
PAPER, GRID, INK, FAINT = (255, 255, 255), (226, 229, 234), (32, 36, 42), (112, 118, 128)
COLOURS = (
    *((38, 99, 235), (220, 88, 42), (22, 148, 98), (147, 63, 186)),
    *((202, 138, 4), (14, 146, 168), (190, 40, 90), (120, 72, 30)),
)
SMOOTHED = 200  # points of a curve, at most; each is the mean of those that it stands for

Curve = list[tuple[list[float], list[float]]]
"""Stretches (x, y), between which there is nothing."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One set of axes: a title and curves by their names."""

    title: str
    x_label: str
    curves: dict[str, Curve]
    dots: bool = False  # few points, worth seeing one by one


def draw_panels(panels: list[Panel]) -> np.ndarray:
    """The panels two by two, RGB (H, W, 3) uint8."""
    drawn = [_draw(panel) for panel in panels]
    if len(drawn) % 2:
        drawn.append(np.full_like(drawn[0], 255))
    return np.concatenate([np.concatenate(drawn[i : i + 2], axis=1) for i in range(0, len(drawn), 2)])


def smooth(x: list[float], y: list[float]) -> tuple[list[float], list[float]]:
    """At most SMOOTHED points, each the mean of several; what isn't a number is left out."""
    points = np.array([(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(b)]).reshape(-1, 2)
    parts = np.array_split(points, max(1, min(len(points), SMOOTHED)))
    means = [part.mean(axis=0) for part in parts if len(part)]
    return [float(mean[0]) for mean in means], [float(mean[1]) for mean in means]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from `low` to `high`."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw * 0.999)
    return [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _draw(panel: Panel) -> np.ndarray:
    image = Image.new("RGB", (WIDTH * FINER, HEIGHT * FINER), PAPER)
    axes = _Axes(image, [[smooth(x, y) for x, y in curve] for curve in panel.curves.values()])
    axes.write((LEFT, 14), panel.title, INK, 17)
    axes.grid(panel.x_label, dots=panel.dots)
    x, y = float(LEFT), 37.0
    for index, name in enumerate(panel.curves):
        colour = COLOURS[index % len(COLOURS)]
        axes.line(index, colour, dots=panel.dots)
        if x + 22 + axes.length(name, 13) > WIDTH - RIGHT:
            x, y = float(LEFT), y + 17
        axes.pen.rounded_rectangle([v * FINER for v in (x, y + 6, x + 16, y + 10)], radius=2 * FINER, fill=colour)
        axes.write((x + 22, y), name, FAINT, 13)
        x += 22 + axes.length(name, 13) + 16
    return np.asarray(image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS))


class _Axes:
    """Where values lie on a picture, and a pen."""

    def __init__(self, image: Image.Image, curves: list[Curve]) -> None:
        self.pen = ImageDraw.Draw(image)
        self.curves = curves
        x, y = ([value for curve in curves for part in curve for value in part[axis]] or [0.0] for axis in (0, 1))
        self.x = (min(x), max(x)) if max(x) > min(x) else (x[0] - 0.5, x[0] + 0.5)
        pad = 0.06 * (max(y) - min(y)) or 0.05 * abs(y[0]) or 0.5
        self.y = (min(y) - pad if min(y) < 0 or min(y) > pad else 0.0, max(y) + pad)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a value."""
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        wide, tall = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        return (LEFT + across * wide) * FINER, (HEIGHT - BOTTOM - up * tall) * FINER

    def write(
        self, xy: tuple[float, float], text: str, colour: tuple[int, int, int], size: int, anchor: str = "la"
    ) -> None:
        """Write at a place in pixels."""
        font = ImageFont.load_default(size=size * FINER)
        self.pen.text((xy[0] * FINER, xy[1] * FINER), text, fill=colour, font=font, anchor=anchor)

    def length(self, text: str, size: int) -> float:
        """How many pixels that takes."""
        return self.pen.textlength(text, font=ImageFont.load_default(size=size * FINER)) / FINER

    def grid(self, x_label: str, *, dots: bool) -> None:
        """Lines and numbers."""
        for value in ticks(*self.y):
            left, right = self.at(self.x[0], value), self.at(self.x[1], value)
            self.pen.line([left, right], fill=GRID, width=FINER)
            self.write((LEFT - 8, left[1] / FINER), f"{value:.4g}", FAINT, 13, "rm")
        few = sorted({x for curve in self.curves for part in curve for x in part[0]})
        for value in few if dots and len(few) <= 12 else ticks(*self.x, 6):
            self.write((self.at(value, self.y[0])[0] / FINER, HEIGHT - BOTTOM + 7), f"{value:.6g}", FAINT, 13, "ma")
        self.write((WIDTH - RIGHT, HEIGHT - 18), x_label, FAINT, 13, "ra")

    def line(self, index: int, colour: tuple[int, int, int], *, dots: bool) -> None:
        """A curve."""
        for part in self.curves[index]:
            points = [self.at(x, y) for x, y in zip(*part, strict=True)]
            if len(points) > 1:
                self.pen.line(points, fill=colour, width=2 * FINER, joint="curve")
            for x, y in points if dots or len(points) == 1 else ():
                reach = 4 * FINER
                self.pen.ellipse((x - reach, y - reach, x + reach, y + reach), fill=colour, outline=PAPER, width=FINER)
