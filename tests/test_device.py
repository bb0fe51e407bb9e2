from pathlib import Path

import cv2
import pytest
import torch

from sekd_cli import Sekd, device
from sekd_cli.cores import available_cores
from sekd_cli.device import (
    give_back_memory,
    keep_freed_memory,
    matching_device,
    resolve_device,
    set_threads,
    wanted_threads,
)
from sekd_cli.errors import DeviceError, UsageError


def test_the_cpu_is_always_there() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert available_cores() >= 1


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "CPU", "", "cuda:-1", "cpu:0"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="give auto, cpu, cuda"):
        resolve_device(name)


def test_a_missing_device_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(DeviceError, match="--device cuda:3: this machine has 1 CUDA GPUs"):
        resolve_device("cuda:3")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="--device mps"):
        resolve_device("mps")


def test_the_apple_gpu_has_two_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert {resolve_device(name).type for name in ("mps", "mps:0")} == {"mps"}  # the second is that of a tensor there


def test_auto_takes_a_gpu_where_there_is_one_and_each_rank_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert resolve_device("auto") == torch.device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "5")
    assert resolve_device("auto") == torch.device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")


class Library:
    """A C library that notes what it is told."""

    def __init__(self) -> None:
        self.told: dict[int, int] = {}
        self.left: list[int] = []

    def mallopt(self, parameter: int, value: int) -> int:
        self.told[parameter] = value
        return 1

    def malloc_trim(self, bytes_left: int) -> int:
        self.left.append(bytes_left)
        return 1


@pytest.mark.parametrize("variable", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX"])
def test_freed_memory_is_kept_unless_the_environment_rules(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library()
    monkeypatch.setattr("sekd_cli.device.ctypes.CDLL", lambda name: library)
    monkeypatch.setenv(variable, "1000000")
    keep_freed_memory()
    assert library.told == {}
    monkeypatch.delenv(variable)
    keep_freed_memory()
    assert library.told == {-1: 2**30, -4: 0, -8: 1}  # M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX of malloc.h


def test_free_memory_is_given_back_to_the_last_page(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library()
    monkeypatch.setattr("sekd_cli.device.ctypes.CDLL", lambda name: library)
    give_back_memory()
    assert library.left == [0]


def test_a_process_of_others_keeps_less(monkeypatch: pytest.MonkeyPatch, untrained_weights: Path) -> None:
    library = Library()
    monkeypatch.setattr("sekd_cli.device.ctypes.CDLL", lambda name: library)
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    Sekd.from_pretrained(untrained_weights, device="cpu")
    assert library.told == {-1: 2**27, -3: 2**25}  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD


def test_where_there_is_no_such_library_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    for missing in (AttributeError, OSError, TypeError):

        def load(name: None, error: type[Exception] = missing) -> None:
            raise error

        monkeypatch.setattr("sekd_cli.device.ctypes.CDLL", load)
        keep_freed_memory()
        give_back_memory()


def test_torch_and_opencv_compute_on_the_threads_told() -> None:
    before = torch.get_num_threads(), cv2.getNumThreads()
    try:
        for threads in (2, 1):
            set_threads(threads)
            assert torch.get_num_threads() == cv2.getNumThreads() == threads
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


@pytest.mark.parametrize("name", ["cuda:200", "cuda:99999999999999999999"])
def test_a_number_beyond_all_devices_is_said(name: str) -> None:
    with pytest.raises(DeviceError, match=name):
        resolve_device(name)


def test_cuda_on_a_machine_without_gpus_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(DeviceError, match="--device cuda: this machine has 0 CUDA GPUs"):
        resolve_device("cuda")


def test_auto_takes_apples_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("mps")


def test_an_apple_gpu_does_not_match() -> None:
    assert [matching_device(torch.device(name)).type for name in ("mps", "cuda", "cpu")] == ["cpu", "cuda", "cpu"]


@pytest.mark.parametrize(("told", "environment", "expected"), [(3, "5", 3), (None, "5,2", 5), (None, None, 7)])
def test_threads_are_those_told_or_openmps_or_all_cores(
    told: int | None, environment: str | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "available_cores", lambda: 7)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if environment is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", environment)
    assert wanted_threads(told) == expected
