"""Where the two views of a pair look: what they share of a zoom, and how far the closer one enlarges."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sekd_cli.errors import UsageError
from sekd_cli.training.settings import TrainingSettings
from sekd_cli.training.views import footprints, random_pairs

FLAT = TrainingSettings(tilt=0.0, shear=0.0, stretch=1.0, closest=1.0, farthest=1.0, zoom=4.0)
"""Views at the photograph's own scale, changed by turns, shifts and zooms alone."""


def scales(settings: TrainingSettings) -> tuple[Tensor, Tensor]:
    """Photograph pixels a view pixel, of the closer and of the farther view of 400 pairs."""
    sizes = torch.tensor([[640.0, 480.0]]).expand(400, 2)
    pairs = random_pairs(sizes, settings, torch.Generator().manual_seed(0))
    found = torch.stack([footprints(view, settings.height, settings.width).det().sqrt() for view in pairs])
    return found.amin(0), found.amax(0)


def test_a_zoom_is_shared_by_both_views() -> None:
    closer, farther = scales(FLAT)
    assert torch.allclose(closer * farther, torch.ones(400), atol=1e-4)
    assert (farther / closer).max() == pytest.approx(4.0, rel=0.05)
    assert closer.min() < 0.55


def test_with_sharp_zooms_both_views_step_back() -> None:
    closer, farther = scales(replace(FLAT, sharp_zoom=0.5))
    zoom = farther / closer
    back = (closer * farther).sqrt()
    assert zoom.max() == pytest.approx(4.0, rel=0.05)
    assert (back >= 1 - 1e-4).all()
    assert (back <= zoom**0.5 + 1e-4).all()
    assert (closer <= 1 + 1e-4).all()
    strong = zoom > 3
    assert closer[strong].max() > 0.9
    assert closer[strong].min() < 0.6


@pytest.mark.parametrize("power", [-0.1, 0.6])
def test_a_power_outside_the_range_is_refused(power: float) -> None:
    with pytest.raises(UsageError, match="sharp_zoom"):
        replace(FLAT, sharp_zoom=power)
