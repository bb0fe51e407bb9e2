"""Weights on disk: safetensors that name their network, and the authors' public checkpoint. Never unpickles code."""

import hashlib
import json
import re
import warnings
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from sekd_cli.errors import InputFileError
from sekd_cli.networks import NETWORKS, DenseNetwork

NUMBERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64)  # the last: batch norms' counters
CHECKPOINT_MAGICS = (b"PK", b"\x80")  # of the authors' checkpoint: a zip of torch's, or a pickle

# The authors' names for the parts of the published network, and ours. `N` stands for a number, kept as it is.
AUTHORS_NAMES = (
    (r"conv0\.", "stem."),
    (r"resblock(\d)\.(\d)\.convb\.", r"stage\1.\2.body."),
    (r"resblock(\d)\.(\d)\.conv_residual\.", r"stage\1.\2.shortcut."),
    (r"deconv(\d)\.", r"up\1."),
    (r"detector\.", "detector."),
    (r"descriptor\.convb\.", "descriptor.body."),
)
"""Each pair: pattern of a name in the authors' `state_dict`, and what it becomes in `PublishedNetwork`."""


def packaged_weights() -> Path:
    """The weights shipped with the package (the top-level folder `weights/` of the repository)."""
    try:
        folder = Path(str(files("sekd_cli.weights")))
    except ModuleNotFoundError:  # run from a checkout that is not installed: the folder lies beside `sekd_cli`
        folder = Path(__file__).parents[2] / "weights"
    return folder / "sekd.safetensors"


def weights_digest(path: Path) -> str:
    """SHA-256 of a weights file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def save_network(path: Path, network: DenseNetwork, metadata: dict[str, Any]) -> None:
    """Write a network so that `load_network` needs nothing else; `metadata` is stored as JSON beside its name.

    If it can't be written, an older file stays as it was, and nothing of the new one is left.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    temporary = path.with_name(path.name + ".part")
    content = safetensors.torch.save(tensors, {"network": network.name, "training": json.dumps(metadata)})
    try:  # as `new_file` does, which is above this layer
        temporary.write_bytes(content)  # not save_file, whose files only their owner may read
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def load_network(path: Path) -> DenseNetwork:
    """The network that a weights file holds, on the CPU, in evaluation mode.

    Raises InputFileError, naming the file, if it is missing or neither kind of weights, or the tensors that are
    missing, extra, of another shape or of a kind that holds no plain numbers.
    """
    try:
        if path.is_dir():
            of_run = path / "model.safetensors"
            remedy = of_run if of_run.is_file() else "a .safetensors of sekd train"
            raise InputFileError(f"{path}: a folder; give {remedy}")
        if not path.is_file():
            raise InputFileError(f"{path}: no such weights file; give a .safetensors of sekd train")
        name, tensors = _read_safetensors(path) if _is_safetensors(path) else _read_authors_checkpoint(path)
    except OSError as error:
        raise InputFileError(f"{path}: not readable ({error.strerror}); give a .safetensors of sekd train") from error
    _check_kinds(path, tensors)
    network = NETWORKS[name].holding(tensors)
    _check_tensors(path, network, tensors)
    network.load_state_dict(tensors)
    return network.float().eval()  # whatever type the process has by default


def may_be_weights(path: Path) -> bool:
    """Whether a file begins as one of either kind of weights does."""
    with path.open("rb") as stream:
        return stream.read(2).startswith(CHECKPOINT_MAGICS) or _is_safetensors(path)


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as stream:
        start = stream.read(9)
    return len(start) == 9 and start[8:] == b"{"  # eight bytes of length, then a JSON object


def _read_safetensors(path: Path) -> tuple[str, dict[str, Tensor]]:
    try:
        with safetensors.safe_open(path, framework="pt") as stream:
            name = (stream.metadata() or {}).get("network", "")
            tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 - not a dict
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise InputFileError(f"{path}: damaged safetensors file ({error}); fetch or train it again") from error
    if name not in NETWORKS:
        known = ", ".join(NETWORKS)
        raise InputFileError(f"{path}: names the network {name!r}, not one of {known}; give weights of sekd train")
    return name, tensors


def _read_authors_checkpoint(path: Path) -> tuple[str, dict[str, Tensor]]:
    kinds = "neither safetensors of sekd train nor the authors' checkpoint (a dict with state_dict)"
    try:
        with warnings.catch_warnings(action="ignore"):  # what torch thinks of a stranger's pickle, in two lines
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds, and pickle more, for a file that is none of its own
        raise InputFileError(f"{path}: {kinds}, or damaged; give one of these") from error
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputFileError(f"{path}: {kinds}; give one of these")
    return "published", {_our_name(str(name)): tensor for name, tensor in state.items()}


def _our_name(name: str) -> str:
    bare = name.removeprefix("module.")  # left there by data-parallel training
    for pattern, ours in AUTHORS_NAMES:
        if re.match(pattern, bare):
            return re.sub("^" + pattern, ours, bare)
    return bare


def _check_kinds(path: Path, tensors: dict[str, Tensor]) -> None:
    for name, tensor in sorted(tensors.items()):
        if tensor.dtype not in NUMBERS or tensor.layout is not torch.strided or tensor.device.type != "cpu":
            kind = f"{tensor.dtype}, {tensor.layout}, {tensor.device.type}".replace("torch.", "")
            raise InputFileError(f"{path}: {name} holds no plain numbers ({kind}); save it as float32")


def _check_tensors(path: Path, network: DenseNetwork, tensors: dict[str, Tensor]) -> None:
    expected = network.state_dict()
    for name in expected:  # older checkpoints lack this counter, which inference never reads
        if name.endswith("num_batches_tracked"):
            tensors.setdefault(name, expected[name])
    problems = []
    if missing := sorted(expected.keys() - tensors.keys()):
        problems.append("missing " + ", ".join(missing))
    if extra := sorted(tensors.keys() - expected.keys()):
        problems.append("extra " + ", ".join(extra))
    if wrong := sorted(n for n in expected.keys() & tensors.keys() if expected[n].shape != tensors[n].shape):
        problems.append("other shapes for " + ", ".join(f"{n} {tuple(tensors[n].shape)}" for n in wrong))
    if problems:
        raise InputFileError(f"{path}: not the {network.name} network: {'; '.join(problems)}")
    for name, tensor in sorted(tensors.items()):
        finite = bool(tensor.float().isfinite().all())
        if not finite or (name.endswith("running_var") and tensor.min() < 0):
            what = "negative variances" if finite else "values that are not finite"
            raise InputFileError(f"{path}: {name} holds {what}; train again, or from an earlier checkpoint")
