"""What is random in training: it depends on a generator, and that on a key, so that a run can be repeated."""

import math

import numpy as np
import torch
from torch import Tensor


def generator_of(*key: int) -> torch.Generator:
    """Randomness that depends on the key alone."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) & 0x7FFF_FFFF_FFFF_FFFF)


def uniform(low: float, high: float, count: int, generator: torch.Generator) -> Tensor:
    """(count,) float32 in [low, high)."""
    return torch.rand(count, generator=generator) * (high - low) + low


def log_uniform(low: float, high: float, count: int, generator: torch.Generator) -> Tensor:
    """(count,) float32 in [low, high), as likely to halve as to double."""
    return uniform(math.log(low), math.log(high), count, generator).exp()
