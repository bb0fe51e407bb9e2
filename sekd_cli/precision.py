"""Which numbers networks compute in: what a user may ask for, and where bfloat16 arithmetic pays."""

import os
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
        fast = has_matrix_units() or _multiplies_bfloat16_twice_as_fast()
        return fast and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return False


def has_matrix_units() -> bool:
    """Whether the CPU has AMX, matrix units for bfloat16: multiplications cost nearly nothing there.

    Not where oneDNN is kept from using them, by its environment variable.
    """
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "ALL")).upper()
    return "amx_bf16" in _cpu_words() and (limit in {"ALL", "DEFAULT"} or "AMX" in limit)


def _multiplies_bfloat16_twice_as_fast() -> bool:
    """Whether the CPU's vector instructions for bfloat16 (AVX512-BF16) pay: AMD's do, Intel's are no faster than
    float32's and cost conversions (docs/EXPERIMENTS.md, 11 and 69).
    """  # noqa: D205 - the reason is part of the sentence
    return {"AuthenticAMD", "avx512_bf16"} <= _cpu_words()


@cache
def _cpu_words() -> frozenset[str]:
    """Vendor and instruction sets of the CPU, as Linux names them; none elsewhere, where torch uses none of these."""
    try:
        return frozenset(Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split())
    except OSError:
        return frozenset()


def mixed_precision(device: torch.device) -> torch.autocast:
    """A context in which networks compute in bfloat16 where the device has it, in float32 elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bfloat16(device))
