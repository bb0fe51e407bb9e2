"""Batch norms folded into the convolutions before them: the same network for inference, with less to compute."""

import copy
from typing import TypeVar

import torch
from torch import nn

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def fold_batch_norms(network: AnyModule) -> AnyModule:
    """A copy of a network in which every batch norm that follows a convolution in an `nn.Sequential` is part of it.

    For evaluation mode only; the outputs agree to 1e-5. Norms that precede their convolution (the published network's)
    stay, as a ReLU lies between.
    """
    folded = copy.deepcopy(network).eval()
    for module in folded.modules():
        if not isinstance(module, nn.Sequential):
            continue
        for index in range(len(module) - 1):
            convolution, norm = module[index], module[index + 1]
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                module[index], module[index + 1] = _fold(convolution, norm), nn.Identity()
    return folded


@torch.no_grad()
def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """`convolution` with `norm`'s factor in its weights and `norm`'s shift in its bias, computed in float64."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight.double()
    shift = -norm.running_mean.double() * factor
    if convolution.bias is not None:
        shift = shift + convolution.bias.double() * factor
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    folded = copy.deepcopy(convolution)
    folded.weight = nn.Parameter((convolution.weight.double() * factor[:, None, None, None]).to(convolution.weight))
    folded.bias = nn.Parameter(shift.to(convolution.weight))
    return folded
