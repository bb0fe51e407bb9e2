"""What the tests of training's losses share: pairs of views of a plane."""

import torch
from torch import Tensor

from sekd_cli.training.parallax import Correspondence


def planar(second_from_first: Tensor) -> Correspondence:
    """Where points of the first views are in the second, by maps (B, 3, 3) alone."""
    count = len(second_from_first)
    unit = torch.eye(3).expand(count, 3, 3)
    nothing = torch.zeros(count, 2, 0, 0)
    return Correspondence(second_from_first, torch.stack((unit, second_from_first)), torch.ones(count, 2), nothing)
