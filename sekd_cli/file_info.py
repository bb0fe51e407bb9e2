"""What a feature file, match file or weights file holds, as plain values that JSON can carry."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import safetensors

from sekd_cli.errors import InputFileError
from sekd_cli.file_contents import FEATURES, MATCHES, Item, items, kind_of, plain, reading, settings_of
from sekd_cli.hdf5_file import HDF5_MAGIC, open_for_reading
from sekd_cli.networks.weights_file import load_network, weights_digest
from sekd_cli.stored_matches import MODELS

HISTOGRAM_BINS = 16


def file_info(path: Path) -> dict[str, Any]:
    """A summary of any file that `sekd` writes or reads. Raises InputFileError if it is missing, damaged or no such."""
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise InputFileError(f"{path}: {what}; give a feature file, a match file or weights")
    with path.open("rb") as stream:
        is_hdf5 = stream.read(len(HDF5_MAGIC)) == HDF5_MAGIC
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
    network = load_network(path)
    return {
        "kind": "weights",
        "network": network.name,
        "parameters": network.count_parameters(),
        "descriptor_dim": network.descriptor_dim,
        "stride": network.stride,
        "threshold": network.default_threshold,
        "nms_radius": network.default_nms_radius,
        "scales": list(network.default_scales),
        "sha256": weights_digest(path),
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
        facts = (
            _features_info(file) if kind == FEATURES else _matches_info(file) if kind == MATCHES else _flat_info(file)
        )
        return {"kind": kind, **facts, **_origin(file)}


def _features_info(file: h5py.File) -> dict[str, Any]:
    complete, incomplete = _sorted_out(file, FEATURES)
    counts = [int(item.group["keypoints"].shape[0]) for item in complete]
    kinds = Counter((int(one.shape[0]), str(one.dtype)) for one in (item.group["descriptors"] for item in complete))
    return {
        "images": len(complete),
        "incomplete": incomplete,
        "keypoints": sum(counts),
        "keypoints_per_image": distribution(counts),
        "without_keypoints": [item.name for item, count in zip(complete, counts, strict=True) if not count],
        "descriptors": [{"dim": dim, "dtype": dtype, "images": count} for (dim, dtype), count in kinds.items()],
    }


def _matches_info(file: h5py.File) -> dict[str, Any]:
    complete, incomplete = _sorted_out(file, MATCHES)
    counts = [int((item.group["matches0"][()] >= 0).sum()) for item in complete]
    models = Counter(model for item in complete for model in MODELS if model in item.group)
    return {
        "images": len({name for item in complete for name in item.name.split("/")}),
        "pairs": len(complete),
        "incomplete": incomplete,
        "matches": sum(counts),
        "matches_per_pair": distribution(counts),
        "pairs_without_matches": counts.count(0),
        "pairs_verified": dict(models),
    }


def _flat_info(file: h5py.File) -> dict[str, Any]:
    shapes = [one.shape for one in file.values() if isinstance(one, h5py.Dataset)]
    return {"datasets": len(shapes), "rows_per_dataset": distribution([shape[0] if shape else 1 for shape in shapes])}


def _sorted_out(file: h5py.File, kind: str) -> tuple[list[Item], list[str]]:
    """Complete items, and names of the others."""
    everything = list(items(file, kind))
    return [item for item in everything if item.complete], [item.name for item in everything if not item.complete]


def _origin(file: h5py.File) -> dict[str, Any]:
    """Who made a file, how; nothing for other tools' files."""
    if "sekd_schema" not in file.attrs:
        return {}
    settings = settings_of(file)
    facts: dict[str, Any] = {
        name: plain(file.attrs.get(name)) for name in ("sekd_version", "network", "weights_sha256")
    }
    if "features" in file.attrs:  # of a match file: what was matched
        of = json.loads(str(plain(file.attrs["features"])))
        facts |= {"network": of.get("network"), "weights_sha256": of.get("weights_sha256")}
    return {**facts, "shard": settings.pop("shard", None), "settings": settings}
