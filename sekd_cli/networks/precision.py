"""Which numbers networks compute in: what a user may ask for, and where bytes and bfloat16 pay."""

import logging
import os
from functools import cache
from pathlib import Path

import torch

from sekd_cli.errors import UsageError
from sekd_cli.networks.byte_convolutions import can_convolve_bytes

logger = logging.getLogger(__name__)

UNLIMITED = ("ALL", "DEFAULT")  # of oneDNN's names of instruction sets
WITH_VNNI = ("VNNI", "BF16", "FP16", "AMX", "AVX10")  # in such names: those that include it, for vectors of 512 bits
NOT_ALL = "and what isn't told"  # stands among instruction sets where there may be more
OF_CAPABILITIES = {"AVX2": frozenset({"avx2", NOT_ALL}), "AVX512": frozenset({"avx2", "avx512f", NOT_ALL})}
PRECISIONS = ("auto", "float32", "bfloat16", "int8")


def resolve_precision(name: str, device: torch.device, *, quantisable: bool) -> str:
    """The precision that `name`, one of PRECISIONS, stands for on a device: the fast one where it is `auto`.

    quantisable: whether the network can compute in bytes at all. Raises UsageError for another name, and for int8 where
    it isn't to be had.
    """
    if name not in PRECISIONS:
        raise UsageError(f"--precision {name}: give {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}")
    if name == "auto":
        if quantisable and has_fast_bytes(device):
            return "int8"
        return "bfloat16" if has_fast_bfloat16(device) else "float32"
    if name not in possible_precisions(device, quantisable=quantisable):
        needs = "the compact network and an x86 CPU with AVX2"
        raise UsageError(f"--precision {name}: it takes {needs}; give auto")
    if name == "bfloat16" and device.type == "cpu" and not has_fast_bfloat16(device):
        logger.warning("--precision bfloat16: this CPU takes up to ten times as long for it as for float32; give auto")
    return name


def possible_precisions(device: torch.device, *, quantisable: bool) -> tuple[str, ...]:
    """Those of PRECISIONS that a network can compute in on a device; some may be slow there."""
    in_bytes = quantisable and _has_bytes(device)
    return tuple(name for name in PRECISIONS if name != "auto" and (in_bytes or name != "int8"))


def has_fast_bytes(device: torch.device) -> bool:
    """Whether convolutions of bytes were found to be faster than float32's: with VNNI, and where AVX2 is all there is.

    They weren't timed with vectors of 512 bits that lack VNNI.
    """
    narrow = "avx512f" not in _cpu_words() or _onednn_limit().startswith("AVX2")
    return _has_bytes(device) and (has_vnni() or narrow)


def _has_bytes(device: torch.device) -> bool:
    """Whether a device has convolutions of bytes at all."""
    limit = _onednn_limit()
    wide_enough = limit in UNLIMITED or limit.startswith(("AVX2", "AVX5", "AVX10"))
    return device.type == "cpu" and "avx2" in _cpu_words() and wide_enough and can_convolve_bytes()


def has_vnni() -> bool:
    """Whether the CPU adds up products of bytes without losing any, and multiplies four at a time: VNNI.

    Without it oneDNN adds up two products in 16 bits, which they may exceed.
    """
    wide, narrow = "avx512_vnni" in _cpu_words(), "avx_vnni" in _cpu_words()
    limit = _onednn_limit()
    if limit in UNLIMITED:
        return wide or narrow
    return narrow if limit.startswith("AVX2_VNNI") else wide and any(word in limit for word in WITH_VNNI)


def reads_weights_alike() -> bool:
    """Whether oneDNN's kernels for bytes read weights in the same order in memory whatever the size of the maps.

    So it was found to be on CPUs with matrix units, and on those where AVX2 is all there is.
    """
    return has_matrix_units() or not _cpu_words() & {NOT_ALL, "avx512f", "avx_vnni"}


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
    limit = _onednn_limit()
    return "amx_bf16" in _cpu_words() and (limit in UNLIMITED or "AMX" in limit)


def _onednn_limit() -> str:
    """The instruction set beyond which oneDNN is told not to go."""
    return (os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "ALL").upper()


def _multiplies_bfloat16_twice_as_fast() -> bool:
    """Whether the CPU's vector instructions for bfloat16 (AVX512-BF16) pay: AMD's do, Intel's are no faster than
    float32's and cost conversions (docs/EXPERIMENTS.md, 11 and 69).
    """  # noqa: D205 - the reason is part of the sentence
    return {"AuthenticAMD", "avx512_bf16"} <= _cpu_words()


@cache
def _cpu_words() -> frozenset[str]:
    """Vendor and instruction sets of the CPU, as Linux names them; elsewhere how wide vectors are, by torch."""
    try:
        return frozenset(Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split())
    except OSError:
        return OF_CAPABILITIES.get(torch.backends.cpu.get_cpu_capability(), frozenset())


def mixed_precision(device: torch.device) -> torch.autocast:
    """A context in which networks compute in bfloat16 where the device has it, in float32 elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bfloat16(device))
