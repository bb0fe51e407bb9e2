"""A network's layers recorded as a graph, which runs from end to end without Python.

Python runs one thread at a time, and asks for its turn after every layer: beside threads that decode and write, that
costs a network of fifty quick layers a fifth of its time. The numbers are the same to the bit. What moves bytes before
the first layer and scores after the last is left out: a graph can't hold the quick ways to do it.
"""

import warnings
from collections.abc import Callable
from functools import cache
from typing import cast

import torch
from torch import Tensor

from sekd_cli.networks.base import DenseMaps, DenseNetwork

DenseFunction = Callable[[Tensor, Tensor], DenseMaps]

RECORDING_PAYS = 100  # images, from which on what it gains is more than the quarter of a second that it takes


@cache
def recordable(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function as a script, whose empty lists `torch.jit.trace` can record; itself where torch no longer records."""
    if not hasattr(torch.jit, "script"):
        return function
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cast(Callable[..., Tensor], torch.jit.script(function))


@torch.inference_mode()
def traced(network: DenseNetwork) -> DenseFunction:
    """What a network on the CPU, in evaluation mode, says of images (B, 1, H, W) of bytes and their statistics (B, 2).

    The network itself where torch no longer records.
    """
    if not hasattr(torch.jit, "trace"):
        return network
    image = torch.zeros(1, 1, 2 * network.stride, 3 * network.stride, dtype=torch.uint8)
    image = image.contiguous(memory_format=torch.channels_last)
    pixels = network.prepared(image, torch.tensor([[0.5, 0.25]], dtype=torch.float32))
    with warnings.catch_warnings():  # deprecated for torch.compile, which takes a C++ compiler and 40 s a size
        warnings.simplefilter("ignore")
        recorded = torch.jit.trace_module(network, {"layers": pixels}, check_trace=False)  # type: ignore[no-untyped-call]
        graph = torch.jit.freeze(recorded, ["layers"])

    def run(image: Tensor, statistics: Tensor) -> DenseMaps:
        return network.finished(DenseMaps(*graph.layers(network.prepared(image, statistics))))

    return run
