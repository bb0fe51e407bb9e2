"""Pictures of keypoints and matches on their photographs, RGB (H, W, 3) uint8; nothing is read or written here."""

from bisect import bisect
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sekd_cli.coordinates import resize_matrix
from sekd_cli.counting import counted
from sekd_cli.images import Photograph, to_stored

Colour = tuple[int, int, int]

INLIER: Colour = (64, 224, 128)
OUTLIER: Colour = (255, 72, 72)
PAPER: Colour = (24, 25, 28)  # between the photographs and below them
INK, FAINT_INK = (236, 236, 236), (160, 162, 168)
SHIFT = 4  # OpenCV draws at sixteenths of a pixel
DIMMED = 0.72  # brightness left to photographs, so that marks stand out
MOST_ENLARGED = 2  # times: marks on a small photograph would be a few pixels themselves
FOOTER = 40  # pixels, at a picture 1600 pixels wide
OTHER_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial.ttf")  # Pillow's own has hardly more than ASCII


@dataclass(frozen=True, kw_only=True)
class View:
    """A photograph, upright, and points on it."""

    pixels: np.ndarray  # (H, W, 3) uint8
    keypoints: np.ndarray  # (N, 2), x and y in its pixels


class Legend(NamedTuple):
    """What the footer tells."""

    title: str
    note: str
    scale: tuple[float, float] | None = None  # scores at both ends of the colours
    marks: tuple[tuple[Colour, str], ...] = ()  # colours and what they mean


def upright(photograph: Photograph, stored_xy: np.ndarray) -> View:
    """A photograph as it is looked at, with points (N, 2) given in the grid of its file."""
    orientation = {6: 8, 8: 6}.get(photograph.orientation, photograph.orientation)  # all others undo themselves
    height, width = photograph.pixels.shape[:2]
    return View(pixels=photograph.pixels, keypoints=to_stored(stored_xy, orientation, (width, height)))


def fitted(view: View, size: int) -> View:
    """The view with a longer edge of `size` pixels, enlarged at most twice; 0 leaves it as it is."""
    height, width = view.pixels.shape[:2]
    factor = min(size / max(height, width), MOST_ENLARGED)
    if not size or factor == 1:
        return view
    return _resized(view, max(1, round(width * factor)), max(1, round(height * factor)))


def draw_keypoints(view: View, scores: np.ndarray, title: str) -> np.ndarray:
    """The photograph with a dot a keypoint, coloured by score: blue the lowest, red the highest."""
    colours, low, high = colours_of(scores)
    canvas = _dimmed(view.pixels)
    radius = max(2.0, 0.0025 * max(canvas.shape[:2]))
    for index in np.argsort(scores, kind="stable"):  # the best on top
        _dot(canvas, view.keypoints[index], radius, colours[index])
    scale = (low, high) if len(scores) else None
    return with_footer(canvas, Legend(title, counted(len(scores), "keypoint"), scale))


def draw_matches(view0: View, view1: View, colours: list[Colour], legend: Legend, *, faint: int = 0) -> np.ndarray:
    """Both photographs side by side, a line from each keypoint of the first to the same row of the second's.

    colours: (M,), drawn in this order, so the last is on top. The first `faint` matches have lines half as strong.
    """
    height = max(view0.pixels.shape[0], view1.pixels.shape[0])
    view0, view1 = (_with_height(view, height) for view in (view0, view1))
    gap = max(4, height // 100)
    left = view0.pixels.shape[1] + gap
    canvas = np.full((height, left + view1.pixels.shape[1], 3), PAPER, dtype=np.uint8)
    canvas[:, : left - gap], canvas[:, left:] = _dimmed(view0.pixels), _dimmed(view1.pixels)
    thickness = 1 if height < 1500 else 2
    ends = view1.keypoints + np.array((left, 0))
    for part, strength in ((slice(0, faint), 0.5), (slice(faint, None), 1.0)):
        lines = canvas.copy()
        for start, end, colour in zip(view0.keypoints[part], ends[part], colours[part], strict=True):
            cv2.line(lines, _fixed(start), _fixed(end), colour, thickness, cv2.LINE_AA, SHIFT)
        opacity = strength * _opacity(len(colours[part]))
        cv2.addWeighted(lines, opacity, canvas, 1 - opacity, 0, dst=canvas)
    for start, end, colour in zip(view0.keypoints, ends, colours, strict=True):
        for point in (start, end):
            _dot(canvas, point, 0.7 + 1.5 * thickness, colour)
    return with_footer(canvas, legend)


def _opacity(lines: int) -> float:
    """The more lines, the fainter: the photographs stay visible."""
    return float(np.clip(0.75 * (200 / max(1, lines)) ** 0.5, 0.25, 0.75))


def colours_of(scores: np.ndarray) -> tuple[list[Colour], float, float]:
    """A colour for each score (N,), and the scores of the colours at the ends: the 2nd and 98th percentile.

    What is no number has the lowest score's colour.
    """
    finite = scores[np.isfinite(scores)]
    low, high = (float(one) for one in np.quantile(finite, (0.02, 0.98))) if len(finite) else (0.0, 0.0)
    share = np.nan_to_num(np.clip((scores - low) / max(high - low, 1e-12), 0, 1))
    return [tuple(one) for one in _ramp()[np.rint(share * 255).astype(int)].tolist()], low, high


def with_footer(picture: np.ndarray, legend: Legend) -> np.ndarray:
    """The picture with a line of text below it."""
    footer = _Footer(picture, ascii_only=legend.title.isascii())
    if legend.scale is not None:
        footer.add_scale(*legend.scale)
    for colour, text in reversed(legend.marks):
        footer.add_mark(colour, text)
    footer.add_text(legend.title, legend.note)
    return np.asarray(footer.image)


class _Footer:
    """A strip below a picture, filled from the right."""

    def __init__(self, picture: np.ndarray, *, ascii_only: bool) -> None:
        height, width = picture.shape[:2]
        self.size = max(22, round(FOOTER * min(width, 2400) / 1600))
        whole = np.full((height + self.size, width, 3), PAPER, dtype=np.uint8)
        whole[:height] = picture
        self.image = Image.fromarray(whole)
        self._pen = ImageDraw.Draw(self.image)
        self._font = _font(round(self.size * 0.45), ascii_only=ascii_only)
        self._middle, self._margin = height + self.size / 2, self.size * 0.4
        self._right = width - self._margin

    def add_scale(self, low: float, high: float) -> None:
        """The colours with the scores at their ends."""
        bar = round(self.size * 3), round(self.size * 0.25)
        self._write_left_of(f"{high:.2g}")
        self._right -= self.size * 0.2 + bar[0]
        ramp = cv2.resize(_ramp()[None], bar, interpolation=cv2.INTER_LINEAR)
        self.image.paste(Image.fromarray(ramp), (round(self._right), round(self._middle - bar[1] / 2)))
        self._right -= self.size * 0.2
        self._write_left_of(f"{low:.2g}")
        self._right -= self._margin

    def add_mark(self, colour: Colour, text: str) -> None:
        """A colour and what it means."""
        self._write_left_of(text)
        side = self.size * 0.3
        self._right -= self.size * 0.25 + side
        box = (self._right, self._middle - side / 2, self._right + side, self._middle + side / 2)
        self._pen.rounded_rectangle(box, radius=side / 4, fill=colour)
        self._right -= self._margin

    def add_text(self, title: str, note: str) -> None:
        """What is seen, on the left; of a title that is too long only its end."""
        end = self._right - self._margin
        note_width = self._pen.textlength(note, font=self._font)
        title = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in title)
        shown = self._end_of(title, end - note_width - 2 * self._margin)
        self._write(self._margin, shown, INK)
        start = self._margin + (self._pen.textlength(shown, font=self._font) + self._margin if shown else 0)
        if start + note_width <= end:
            self._write(start, note, FAINT_INK)

    def _end_of(self, text: str, room: float) -> str:
        """The text, or as much of its end as there is room for."""

        def length(shown: str) -> float:
            return self._pen.textlength(shown, font=self._font)

        if length(text) <= room:
            return text
        too_long = bisect(range(len(text)), room, key=lambda kept: length(f"...{text[len(text) - kept :]}"))
        return f"...{text[len(text) - too_long + 1 :]}" if too_long > 1 else ""

    def _write(self, x: float, text: str, colour: Colour) -> None:
        self._pen.text((x, self._middle), text, fill=colour, font=self._font, anchor="lm")

    def _write_left_of(self, text: str) -> None:
        self._right -= self._pen.textlength(text, font=self._font)
        self._write(self._right, text, FAINT_INK)


def _font(size: int, *, ascii_only: bool) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    for name in () if ascii_only else OTHER_FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue  # not on this machine
    return ImageFont.load_default(size=size)


def _ramp() -> np.ndarray:
    """(256, 3) uint8 RGB from blue over green to red, OpenCV's TURBO without its dark ends."""
    steps = np.linspace(20, 235, 256).round().astype(np.uint8)
    return np.ascontiguousarray(cv2.applyColorMap(steps[:, None], cv2.COLORMAP_TURBO)[:, 0, ::-1])


def _dimmed(pixels: np.ndarray) -> np.ndarray:
    return np.rint(pixels * DIMMED).astype(np.uint8, order="C")  # OpenCV draws on no turned view


def _dot(canvas: np.ndarray, xy: np.ndarray, radius: float, colour: Colour) -> None:
    """A disc with a dark rim, which shows on any ground."""
    scale = 1 << SHIFT
    cv2.circle(canvas, _fixed(xy), round((radius + 0.9) * scale), (16, 16, 16), -1, cv2.LINE_AA, SHIFT)
    cv2.circle(canvas, _fixed(xy), round(radius * scale), colour, -1, cv2.LINE_AA, SHIFT)


def _fixed(xy: np.ndarray) -> tuple[int, int]:
    x, y = np.clip(np.nan_to_num(xy), -1e5, 1e5) * (1 << SHIFT)
    return round(float(x)), round(float(y))


def _with_height(view: View, height: int) -> View:
    old_height, old_width = view.pixels.shape[:2]
    return view if old_height == height else _resized(view, max(1, round(old_width * height / old_height)), height)


def _resized(view: View, width: int, height: int) -> View:
    old_height, old_width = view.pixels.shape[:2]
    smaller = width < old_width
    pixels = cv2.resize(view.pixels, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)
    matrix = resize_matrix(width / old_width, height / old_height)
    return View(pixels=np.asarray(pixels), keypoints=view.keypoints @ matrix[:2, :2].T + matrix[:2, 2])
