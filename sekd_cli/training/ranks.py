"""Several processes that train one network, as torchrun starts them (ranks); for a single one all this is nothing.

A step of several ranks is the step of one process with the whole batch: each has an equal share of the pairs, sums are
divided by the counts of all, batch norms have the statistics of all, and the photograph before a rank's first is the
last of the rank before. So the losses of the ranks add up, and their gradients.
"""

import os
from datetime import timedelta
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sekd_cli.errors import UsageError

PATIENCE = timedelta(hours=12)  # while the first rank decodes a hundred thousand photographs


def join(device: torch.device) -> None:
    """Meet the other ranks, if torchrun started any. What is on a GPU goes from GPU to GPU, the rest by the CPUs."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)


def leave() -> None:
    """Part from the other ranks."""
    if dist.is_initialized():
        dist.destroy_process_group()


def ranks() -> int:
    """How many there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which one this is; the first, 0, writes files and talks."""
    return dist.get_rank() if dist.is_initialized() else 0


def check_shares(batch_size: int) -> None:
    """Raise UsageError if the ranks can't have equal shares of a batch."""
    if batch_size % ranks():
        raise UsageError(f"batch_size {batch_size} is not a multiple of the {ranks()} processes; --set batch_size=N")


def wait() -> None:
    """Until all ranks are here: what the first one wrote is there."""
    total(torch.zeros(1))


def agreed(number: float) -> float:
    """The first rank's number: clocks differ, and what the ranks do must not."""
    if ranks() == 1:
        return number
    told = torch.tensor([number], dtype=torch.float64)
    dist.broadcast(told, 0)
    return float(told)


def total(part: Tensor) -> Tensor:
    """The sum over all ranks of a tensor without a gradient."""
    if ranks() == 1:
        return part
    whole = part.detach().clone()
    dist.all_reduce(whole)
    return whole


def gathered(part: Tensor) -> Tensor:
    """All ranks' tensors of one shape, (R, ...), in the ranks' order; gradients find their way back."""
    if ranks() == 1:
        return part[None]
    whole: Tensor = _Gathered.apply(part)  # type: ignore[no-untyped-call]
    return whole


def previous(part: Tensor) -> Tensor:
    """What the photograph before has: (B, ...) moved on by one, across the ranks; before the first is the very last."""
    if ranks() == 1:
        return part.roll(1, 0)
    return gathered(part).flatten(0, 1).roll(1, 0)[rank() * len(part) : (rank() + 1) * len(part)]


class _Gathered(torch.autograd.Function):
    """Every rank's loss depends on every rank's part: a part's gradient is the sum of what all ranks found for it."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        whole = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(ranks())]
        dist.all_gather(whole, part.contiguous())
        return torch.stack(whole)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return total(gradient.contiguous())[rank()]


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch norm with the statistics of all ranks' images, on any device; torch's own needs a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        values = x.float()
        own = torch.stack((values.mean(dim=(0, 2, 3)), values.var(dim=(0, 2, 3), correction=0)))  # (2, C)
        means, variances = gathered(own).unbind(1)  # (R, C)
        mean = means.mean(dim=0)
        variance = variances.mean(dim=0) + (means - mean).square().mean(dim=0)
        with torch.no_grad():
            count = ranks() * x.numel() / x.shape[1]
            momentum = self.momentum or 0.0
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * count / (count - 1), momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked += 1
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        return (values * scale[:, None, None] + shift[:, None, None]).to(x.dtype)


def shared(network: nn.Module, device: torch.device) -> nn.Module:
    """The network as all ranks train it together; its parameters stay those of `network`."""
    if ranks() == 1:
        return network
    if device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    else:
        for module in network.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = SharedBatchNorm  # nothing but its forward is another
    devices = [device] if device.type == "cuda" else None
    known = signature(DistributedDataParallel.__init__).parameters
    own_buffers: dict[str, Any] = {  # equal on all ranks as it is; torch 2.13 warns of the older name
        "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False
    }
    return DistributedDataParallel(network, device_ids=devices, **own_buffers)
