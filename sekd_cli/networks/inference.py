"""Networks made ready for inference: norms folded away, memory in the order of the kernels, weights in a precision."""

from functools import partial

import torch
from torch import nn

from sekd_cli.networks.base import DenseNetwork, Float32Convolution
from sekd_cli.networks.compact import CompactNetwork
from sekd_cli.networks.folding import fold_batch_norms
from sekd_cli.networks.fusing import can_fuse, fuse
from sekd_cli.networks.packing import Unpack, pack_fine_levels
from sekd_cli.networks.precision import has_matrix_units, has_vnni, resolve_precision
from sekd_cli.networks.quantising import quantise
from sekd_cli.networks.sparse_images import BytesWhereTheySuit
from sekd_cli.networks.tracing import RECORDING_PAYS, DenseFunction, traced


def dense_function(
    network: DenseNetwork, precision: str, device: torch.device, images: int | None = None
) -> DenseFunction:
    """What a network says of images (B, 1, H, W) of bytes and their statistics (B, 2), as fast as a device can.

    images: how many there will be, if that's known; for few it is sooner ready to begin, and slower.
    """
    ready = inference_network(network, precision, device)
    records = device.type == "cpu" and (images is None or images >= RECORDING_PAYS)
    function = traced(ready) if records else ready
    if precision != "int8":
        return function
    otherwise = resolve_precision("auto", device, quantisable=False)
    return BytesWhereTheySuit(function, partial(dense_function, network, otherwise, device, images))


def inference_network(network: DenseNetwork, precision: str, device: torch.device) -> DenseNetwork:
    """A copy of a network that computes in `precision` (one of `possible_precisions`) on a device, in evaluation mode.

    In bfloat16 the weights themselves are rounded, so that no cast is left in the way, but for a `Float32Convolution`
    (on matrix units `FusedInTwoParts` stands for it) and for norms, whose few values cost nothing.
    """
    ready = fold_batch_norms(network)
    if device.type == "cpu" and isinstance(ready, CompactNetwork):
        ready.interleave = Unpack(2)  # what `Interleave` does, by two numbers at a time, which can't be learned through
    if precision == "int8":
        assert isinstance(ready, CompactNetwork)
        return quantise(pack_fine_levels(ready) if has_vnni() else ready)
    if precision == "bfloat16" and device.type == "cpu" and isinstance(ready, CompactNetwork) and has_matrix_units():
        ready = pack_fine_levels(ready)
    ready = ready.to(device)
    if precision == "bfloat16":
        ready.bfloat16()
        for module in ready.modules():
            if isinstance(module, Float32Convolution | nn.BatchNorm2d):
                module.float()
    ready.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from its types
    if device.type == "cpu" and isinstance(ready, CompactNetwork) and can_fuse(ready.dtype):
        return fuse(ready)
    return ready
