"""The device that the user asks for, the threads of the CPU, and what becomes of memory that is given back."""

import ctypes
import os
import re
from collections.abc import Mapping
from contextlib import suppress

import cv2
import torch

from sekd_cli.cores import available_cores
from sekd_cli.errors import DeviceError, UsageError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -3, -4, -8  # parameters of glibc's mallopt
KEPT_BYTES = 1 << 30  # of free memory that a process of ours holds on to before it gives some back
KEPT_FOR_OTHERS = 128 << 20  # that a process which uses `sekd` as a library does
LARGEST_KEPT = 32 << 20  # block, there; the most that glibc takes


def resolve_device(name: str) -> torch.device:
    """`auto` (the first GPU, else the CPU), `cpu`, `cuda`, `cuda:1` or `mps` (`mps:0` to torch, of a tensor there).

    Raises UsageError for another name, DeviceError if this machine has no such device.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps(:0)?", name):
        raise UsageError(f"--device {name}: give auto, cpu, cuda, cuda:1 (the second GPU) or mps")
    if name == "auto":
        if torch.cuda.is_available():
            local_rank = int(os.environ.get("LOCAL_RANK", "0"))  # torchrun starts a process for each GPU
            return torch.device("cuda", local_rank % torch.cuda.device_count())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    index = int(name.partition(":")[2] or 0)
    if name.startswith("cuda") and index >= torch.cuda.device_count():
        raise DeviceError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA GPUs; give cpu or auto")
    if name.startswith("mps") and not torch.backends.mps.is_available():
        raise DeviceError(f"--device {name}: this machine has no Apple GPU that torch can use; give cpu or auto")
    return torch.device(name)


def matching_device(device: torch.device) -> torch.device:
    """Where to match: on this device, but not on an Apple GPU, where torch crashes if several threads compute."""
    return torch.device("cpu") if device.type == "mps" else device


def wanted_threads(threads: int | None) -> int:
    """How many threads to compute on: so many if told, else what OMP_NUM_THREADS says, else all cores."""
    if threads is not None:
        return threads
    return torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else available_cores()


def set_threads(threads: int) -> None:
    """Let torch and OpenCV compute on so many threads."""
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)


def keep_freed_memory() -> None:
    """Let the C library keep what is freed for the next tensor, instead of having pages mapped and cleared anew.

    There is one arena for all threads, as all but the first map blocks of 64 MB one by one; and nothing is mapped, as
    blocks of 32 MB or more (an image of 8 megapixels) would be, one by one as well. Where the library isn't glibc
    nothing changes, and environment variables that set the same (MALLOC_...) rule.
    """
    _tell_malloc({M_ARENA_MAX: 1, M_MMAP_MAX: 0, M_TRIM_THRESHOLD: KEPT_BYTES})


def keep_freed_tensors() -> None:
    """`keep_freed_memory` as a process that does other things, too, can bear it: little is kept, and no large block."""
    _tell_malloc({M_MMAP_THRESHOLD: LARGEST_KEPT, M_TRIM_THRESHOLD: KEPT_FOR_OTHERS})


def _tell_malloc(parameters: Mapping[int, int]) -> None:
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    with suppress(AttributeError, OSError, TypeError):  # the C library isn't glibc
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in parameters.items():
            mallopt(parameter, value)


def give_back_memory() -> None:
    """Return free pages between the blocks in use to the system: kept ones are split by small blocks that stay."""
    with suppress(AttributeError, OSError, TypeError):  # as above
        ctypes.CDLL(None).malloc_trim(0)
