"""The compact network in whole numbers of eight bits, of which a CPU multiplies two to four times as many at once.

Where CPUs have VNNI, products cost so little that the packed network is the faster one. Grids span what `calibration`
sees in maps. A sum may be written over one of its maps, as nothing reads that afterwards. Scores come out in float32:
rounded ones tie, and lose the peak.
"""

import copy
import math
from functools import cache

from torch import Tensor, nn

from sekd_cli.errors import InputFileError
from sekd_cli.geometry import upsample
from sekd_cli.networks.calibration import maps_of, range_of
from sekd_cli.networks.compact import CompactNetwork
from sekd_cli.networks.packing import BorderRepeated, NormaliseCells, convolution_of, packed_convolution
from sekd_cli.networks.quantised_layers import (
    Grid,
    QuantisedBorderRepeated,
    QuantisedConvolution,
    QuantisedEnlargeOnto,
    QuantisedFirst,
    QuantisedPair,
    QuantisedSmoothOnto,
    RealConvolution,
)


class _Quantiser:
    """Parts of a network by name, in bytes; each is told the part whose maps it is given."""

    def __init__(self, network: CompactNetwork) -> None:
        self.network, self.maps = network, maps_of(network)
        self.factor = network.normalise.factor if isinstance(network.normalise, NormaliseCells) else 1  # 1: not packed
        self.grid, self.mean = cache(self._grid), cache(self._mean)

    def _grid(self, name: str) -> Grid:
        low, high = range_of(self.maps[name])
        if not math.isfinite(high - low):
            raise InputFileError("--weights: maps too large for float32; train again, or from an earlier checkpoint")
        return Grid.spanning(low, high)

    def _mean(self, name: str) -> Tensor:
        step = self.grid(name).step  # in whole steps, lest it depend on how a CPU adds up
        return step * (self.maps[name].mean((0, 2, 3)) / step).round()

    def plain(self, name: str) -> nn.Conv2d:
        """The convolution of the part `name`, as the network has it."""
        part = self.network.get_submodule(name)
        return part if isinstance(part, nn.Conv2d) else convolution_of(part)

    def quantised(self, convolution: nn.Conv2d, source: str, target: str) -> QuantisedConvolution:
        """A convolution in bytes of the maps of the part `source`, its results on the grid of the part `target`."""
        return QuantisedConvolution(convolution, self.grid(source), self.grid(target), self.mean(source))

    def convolution(self, name: str, source: str) -> QuantisedConvolution:
        """The part `name`, a convolution of the maps of `source`, from bytes to bytes."""
        return self.quantised(self.plain(name), source, name)

    def reals(self, name: str, source: str) -> RealConvolution:
        """The part `name`, a convolution of the maps of `source`, from bytes to float32."""
        return RealConvolution(self.plain(name), self.grid(source), self.mean(source))

    def pair(self, name: str, source: str) -> QuantisedPair:
        """The part `name`, a residual pair that takes the maps of `source`."""
        first, second = f"{name}.body.0", f"{name}.body.1"
        return QuantisedPair(self.convolution(first, source), self.quantised(self.plain(second), first, name))

    def level(self, name: str, source: str) -> nn.Sequential:
        """The part `name`: a convolution to half the resolution of `source`, then a residual pair."""
        return nn.Sequential(self.convolution(f"{name}.0", source), self.pair(f"{name}.1", f"{name}.0"))

    def smoothed(self, source: str, finer: str, name: str) -> QuantisedSmoothOnto:
        """The part `name`: the maps of `source` enlarged by two and added to those of `finer`."""
        channels = self.maps[source].shape[1]
        return QuantisedSmoothOnto(channels, self.grid(source), self.grid(finer), self.grid(name))

    def enlarged(self, made: CompactNetwork, context: str, source: str, onto: str, finer: str) -> None:
        """Put the parts `context`, a 1x1 convolution of the maps of `source`, and `onto`, its result enlarged and added
        to the maps of `finer`, into the network `made`: as two layers, or as one where the fine levels are packed.
        """  # noqa: D205 - one sentence
        if self.factor == 1:
            setattr(made, context, self.convolution(context, source))
            setattr(made, onto, self.smoothed(context, finer, onto))
            return
        alone = self.plain(context)
        cells = packed_convolution(lambda values: upsample(alone(values), 2), alone.in_channels, 1, 2, padding=0)
        setattr(made, context, nn.Identity())
        setattr(made, onto, QuantisedEnlargeOnto(self.quantised(cells, source, onto), self.grid(finer)))


def quantise(network: CompactNetwork) -> CompactNetwork:
    """A copy, in bytes, of a network whose norms are folded; its fine levels may be packed.

    Raises InputFileError if its weights make numbers that aren't finite.
    """
    made, of = copy.deepcopy(network), _Quantiser(network)
    made.normalise = QuantisedFirst(of.factor, of.convolution("level2.0", "normalise"))
    made.level2 = nn.Sequential(of.convolution("level2.1", "level2.0"))
    made.level4 = nn.Sequential(of.convolution("level4.0", "level2.1"), of.convolution("level4.1", "level4.0"))
    made.level8 = of.level("level8", "level4.1")
    made.level16 = of.level("level16", "level8.1")
    made.level32 = of.level("level32", "level16.1")
    of.enlarged(made, "context16", "level32.1", "onto16", "level16.1")
    of.enlarged(made, "context8", "onto16", "onto8", "level8.1")
    if network.context_detail is not None:
        of.enlarged(made, "context_detail", "onto8", "onto4", "level4.1")
        made.blend = nn.Sequential(of.pair("blend.0", "onto4"))
    made.semantic = nn.Sequential(of.convolution("semantic.0", "onto8"), of.reals("semantic.1", "semantic.0"))
    made.detail = of.reals("detail", "blend")  # type: ignore[assignment]
    made.context2 = of.convolution("context2", "blend")  # type: ignore[assignment]
    of.enlarged(made, "context4", "level8.1", "joined4", "context2")
    if isinstance(network.onto2, BorderRepeated):
        enlarge = of.quantised(network.onto2.convolution, "joined4", "onto2")
        made.onto2 = QuantisedBorderRepeated(enlarge, of.grid("level2.1"))
    else:
        made.onto2 = of.smoothed("joined4", "level2.1", "onto2")
    made.surroundings = nn.Sequential(of.convolution("surroundings", "onto2"))
    made.detector = of.reals("detector", "surroundings")
    return made
