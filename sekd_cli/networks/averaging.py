"""Several trained networks as one: the mean of their weights.

Networks that went on from the same one and learned different things lie so near each other that the mean of their
weights computes something sensible, and keeps more of what each has learned than one would expect.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from sekd_cli.errors import UsageError
from sekd_cli.networks.base import DenseNetwork
from sekd_cli.networks.compact import AddedContext, ResidualPair


def average_networks(networks: Sequence[DenseNetwork], shares: Sequence[float]) -> DenseNetwork:
    """The mean of networks of one kind by `shares`, which sum up to 1; as deep as the deepest of them.

    Raises UsageError for networks of different kinds.
    """
    kinds = sorted({network.name for network in networks})
    if len(kinds) > 1:
        raise UsageError(f"weights of different networks ({', '.join(kinds)}) have no mean; give those of one")
    deepest = max(networks, key=lambda network: network.count_parameters())
    states = [_as_deep_as(deepest, network) for network in networks]
    mean = copy.deepcopy(deepest)
    mean.load_state_dict(
        {
            name: _mean([state[name] for state in states], shares) if value.is_floating_point() else value
            for name, value in mean.state_dict().items()
        }
    )
    return mean


def _mean(values: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    weighted = [share * value.double() for value, share in zip(values, shares, strict=True)]
    return torch.stack(weighted).sum(dim=0).to(values[0].dtype)


def _as_deep_as(deepest: DenseNetwork, network: DenseNetwork) -> dict[str, Tensor]:
    """The weights of a network in the shape of the deepest: what it lacks adds nothing."""
    own = network.state_dict()
    deep = copy.deepcopy(deepest)
    for name, module in deep.named_modules():
        if isinstance(module, ResidualPair | AddedContext) and not any(key.startswith(f"{name}.") for key in own):
            module.silence()
    deep.load_state_dict(own, strict=False)
    return deep.state_dict()
