"""Which numbers networks compute in: what a user may ask for, and where bfloat16 arithmetic pays."""

from functools import cache
from pathlib import Path

import torch

from sekd_cli.errors import UsageError

PRECISIONS = ("auto", "float32", "bfloat16")


def resolve_precision(name: str, device: torch.device) -> str:
    """The precision that `name`, one of PRECISIONS, stands for on a device: the fast one where it is `auto`.

    Raises UsageError for another name.
    """
    if name not in PRECISIONS:
        raise UsageError(f"--precision {name}: give {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}")
    if name == "auto":
        return "bfloat16" if has_fast_bfloat16(device) else "float32"
    return name


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices faster than float32 ones."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return _has_amx() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return False


@cache
def _has_amx() -> bool:
    """Whether the CPU has matrix units for bfloat16 (docs/EXPERIMENTS.md: with vector instructions alone, AVX512-BF16,
    networks take longer than in float32, and four times as long where even these are emulated).
    """  # noqa: D205 - the reason is part of the sentence
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split()
    except OSError:  # no Linux: no AMX that torch could use
        return False


def mixed_precision(device: torch.device) -> torch.autocast:
    """A context in which networks compute in bfloat16 where the device has it, in float32 elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bfloat16(device))
