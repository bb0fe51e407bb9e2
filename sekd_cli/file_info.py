"""What a feature file, match file or weights file holds, as plain values that JSON can carry."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import h5py
import numpy as np
import safetensors

from sekd_cli.config import MODELS
from sekd_cli.errors import InputFileError
from sekd_cli.file_contents import FEATURES, FLAT, MATCHES, items, kind_of, reading
from sekd_cli.hdf5_file import HDF5_MAGIC, open_for_reading, plain, read_numbers, settings_in

HISTOGRAM_BINS = 16
REMEDY = "give a feature file, a match file or weights"

Facts = TypeVar("Facts")


def file_info(path: Path) -> dict[str, Any]:
    """A summary of any file that `sekd` writes or reads. Raises InputFileError if it is missing, damaged or no such."""
    try:
        if not path.is_file():
            what = "a folder" if path.is_dir() else "is not a file" if path.exists() else "no such file"
            raise InputFileError(f"{path}: {what}; {REMEDY}")
        with path.open("rb") as stream:
            is_hdf5 = stream.read(len(HDF5_MAGIC)) == HDF5_MAGIC
    except OSError as error:
        raise InputFileError(f"{path}: not readable ({error.strerror}); {REMEDY}") from error
    facts = _hdf5_info(path) if is_hdf5 else _weights_info(path)
    return {"file": str(path), "kind": facts.pop("kind"), "bytes": path.stat().st_size, **facts}


def distribution(counts: Sequence[int]) -> dict[str, Any] | None:
    """Least, quantiles, largest, mean, and a histogram of equal bins from least to largest; None of nothing."""
    if not counts:
        return None
    low, high = min(counts), max(counts)
    bins = min(HISTOGRAM_BINS, high - low + 1)
    quantiles = np.quantile(counts, (0.1, 0.5, 0.9), method="nearest").tolist()
    histogram = np.histogram(counts, bins=bins, range=(low, high))[0].tolist()
    return {
        "min": low,
        "p10": quantiles[0],
        "median": quantiles[1],
        "p90": quantiles[2],
        "max": high,
        "mean": round(float(np.mean(counts)), 1),
        "histogram": histogram,
    }


def _weights_info(path: Path) -> dict[str, Any]:
    from sekd_cli.networks import weights_file  # noqa: PLC0415 - loads torch, which other files need not

    if not weights_file.may_be_weights(path):
        raise InputFileError(f"{path}: nothing that sekd writes; {REMEDY}")
    network = weights_file.load_network(path)
    return {
        "kind": "weights",
        "network": network.name,
        "parameters": network.count_parameters(),
        "descriptor_dim": network.descriptor_dim,
        "stride": network.stride,
        "threshold": network.default_threshold,
        "nms_radius": network.default_nms_radius,
        "scales": list(network.default_scales),
        "sha256": weights_file.weights_digest(path),
        "training": _training_facts(path),
    }


def _training_facts(path: Path) -> dict[str, Any]:
    """What `sekd train` wrote into a weights file that `load_network` accepted; nothing for the authors' checkpoint."""
    try:
        with safetensors.safe_open(path, framework="numpy") as stream:
            facts = json.loads((stream.metadata() or {}).get("training", "{}"))
    except (safetensors.SafetensorError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _hdf5_info(path: Path) -> dict[str, Any]:
    with open_for_reading(path, "feature or match") as file, reading(path):
        kind = kind_of(file)
        info = {FEATURES: _features_info, MATCHES: _matches_info, FLAT: _flat_info}[kind]
        return {"kind": kind, **info(file), **_origin(file)}


def _features_info(file: h5py.File) -> dict[str, Any]:
    complete, incomplete = _told(file, FEATURES, _image_facts)
    counts = [count for _, (count, _) in complete]
    kinds = Counter(kind for _, (_, kind) in complete)
    return {
        "images": len(complete),
        "incomplete": incomplete,
        "keypoints": sum(counts),
        "keypoints_per_image": distribution(counts),
        "without_keypoints": [name for name, (count, _) in complete if not count],
        "descriptors": [{"dim": dim, "dtype": dtype, "images": count} for (dim, dtype), count in kinds.items()],
    }


def _image_facts(group: h5py.Group) -> tuple[int, tuple[int, str]]:
    """Number of keypoints; dimension and type of the descriptors."""
    descriptors = group["descriptors"]
    return int(group["keypoints"].shape[0]), (int(descriptors.shape[0]), str(descriptors.dtype))


def _matches_info(file: h5py.File) -> dict[str, Any]:
    complete, incomplete = _told(file, MATCHES, _pair_facts)
    counts = [facts.matches for _, facts in complete]
    models = Counter(model for _, facts in complete for model in facts.models)
    aligned = [facts.aligned for _, facts in complete if facts.aligned is not None]
    return {
        "images": len({image for name, _ in complete for image in name.split("/")}),
        "pairs": len(complete),
        "incomplete": incomplete,
        "matches": sum(counts),
        **({"matches_aligned": sum(aligned)} if aligned else {}),
        "matches_per_pair": distribution(counts),
        "pairs_without_matches": counts.count(0),
        "pairs_verified": dict(models),
    }


class _PairFacts(NamedTuple):
    """What is told of a pair's matches."""

    matches: int
    models: tuple[str, ...]  # that they were verified by
    aligned: int | None  # of the matches; None if it wasn't tried


def _pair_facts(group: h5py.Group) -> _PairFacts:
    return _PairFacts(
        matches=int((read_numbers(group, "matches0") >= 0).sum()),
        models=tuple(model for model in MODELS if model in group),
        aligned=int((read_numbers(group, "correlations") > 0).sum()) if "correlations" in group else None,
    )


def _flat_info(file: h5py.File) -> dict[str, Any]:
    shapes = [one.shape for one in file.values() if isinstance(one, h5py.Dataset)]
    return {"datasets": len(shapes), "rows_per_dataset": distribution([shape[0] if shape else 1 for shape in shapes])}


def _told(
    file: h5py.File, kind: str, facts: Callable[[h5py.Group], Facts]
) -> tuple[list[tuple[str, Facts]], list[str]]:
    """Names of what is complete, each with its facts, and names of what isn't; no group stays open."""
    complete: list[tuple[str, Facts]] = []
    incomplete = []
    for item in items(file, kind):
        if item.complete:
            complete.append((item.name, facts(item.group)))
        else:
            incomplete.append(item.name)
    return complete, incomplete


def _origin(file: h5py.File) -> dict[str, Any]:
    """Who made a file, how; nothing for other tools' files."""
    if "sekd_schema" not in file.attrs:
        return {}
    settings = settings_in(file.attrs)
    facts: dict[str, Any] = {
        name: plain(file.attrs.get(name)) for name in ("sekd_version", "network", "weights_sha256")
    }
    if "features" in file.attrs:  # of a match file: what was matched
        of = json.loads(str(plain(file.attrs["features"])))
        facts |= {"network": of.get("network"), "weights_sha256": of.get("weights_sha256")}
    return {**facts, "shard": settings.pop("shard", None), "settings": settings}
