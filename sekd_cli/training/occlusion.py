"""Things in front: parts of a view that hide the photograph, as people, cars and nearer walls do (beyond the paper).

A homography moves a whole view at once, so without them a descriptor may rely on all that lies around its keypoint.
"""

import torch
from torch import Tensor

from sekd_cli.geometry import inside, resize_image
from sekd_cli.training.randomness import uniform

COARSE, FINE = 6, 18  # numbers along each side of a view, that decide on the shape of what hides and on its outline
RAGGED = 0.25  # of the outline, in units of the shape's
LEAST, MOST = 0.2, 1.2  # height from which something hides: a sixth of a view or so, seldom half


def draw_hidden(count: int, share: float, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Which pixels of views are hidden, (count, height, width) bool; none in those but a `share` of the views."""
    shape = torch.randn(count, 1, COARSE, COARSE, generator=generator)
    outline = torch.randn(count, 1, FINE, FINE, generator=generator)
    height_of = resize_image(shape, height, width) + RAGGED * resize_image(outline, height, width)
    least = uniform(LEAST, MOST, count, generator)
    least = least.masked_fill(uniform(0.0, 1.0, count, generator) >= share, torch.inf)
    return height_of[:, 0] > least[:, None, None]


def hidden_at(hidden: Tensor, xy: Tensor) -> Tensor:
    """Whether points (..., N, 2) in pixels are hidden in their views (..., H, W), (..., N); those outside are not.

    Views of no pixels stand for views in which nothing is hidden.
    """
    if not hidden.numel():
        return torch.zeros(xy.shape[:-1], dtype=torch.bool)
    height, width = hidden.shape[-2:]
    limit = xy.new_tensor([width - 1, height - 1])
    x, y = xy.round().clamp(min=0).minimum(limit).long().unbind(-1)
    return hidden.flatten(-2).gather(-1, y * width + x) & inside(xy, height, width)
