"""Milliseconds an image by the size of the batch, of the network alone and of extraction with 2,048 keypoints.

    python benchmarks/batches.py [--image FILE] [--device cuda] [--batches 1 8 32] [--sizes 640x480 1600x1200] [--json]

The image, by default one of the examples, is resized. Medians over rounds, on a GPU of the time until it is done, on a
CPU of one thread's processor time; what is beside the network is detection, descriptors and the way back to the file's
pixels. Reading is not in it. Beside them the bound: what the network's convolutions would take if each multiplied as
fast as the device multiplies large matrices in that precision, or read and wrote its maps as fast as the device copies
memory, whichever takes longer. (A CPU's caches are faster than that, so there it is no bound; in bytes it has none.)
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import cv2
import torch
from measuring import median_ms
from torch import Tensor, nn

from sekd_cli.config import DetectionSettings
from sekd_cli.device import keep_freed_memory, resolve_device
from sekd_cli.extraction import Extractor
from sekd_cli.images import Photograph, read_image
from sekd_cli.networks import DenseNetwork
from sekd_cli.networks.weights_file import load_network, packaged_weights
from sekd_cli.pyramid import PreparedImage

IMAGE = Path(__file__).parents[1] / "examples" / "china.jpg"
KEYPOINTS = 2048


class Peaks(NamedTuple):
    """What a device can do at most, a second."""

    operations: float  # multiplications and additions of large matrices
    bytes: float  # read and written, of large copies


def peaks(device: torch.device, dtype: torch.dtype) -> Peaks:
    """Measured on the device."""
    edge, size = (8192, 1 << 30) if device.type == "cuda" else (1024, 1 << 27)
    one, other = (torch.randn(edge, edge, device=device).to(dtype) for _ in range(2))
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    product = median_ms(lambda: torch.mm(one, other), 20, device)
    copy = median_ms(lambda: target.copy_(source), 20, device)
    return Peaks(operations=2e3 * edge**3 / product, bytes=2e3 * size / copy)


@torch.inference_mode()
def bound_ms(network: DenseNetwork, sizes: Sequence[tuple[int, int]], dtype: torch.dtype, most: Peaks) -> float:
    """Milliseconds that a network's convolutions take at least for an image at sizes of so many rows and columns."""
    spent: list[float] = []

    def count(part: nn.Module, given: tuple[Tensor], found: Tensor) -> None:
        assert isinstance(part, nn.Conv2d)
        operations = 2 * found.numel() * part.weight[0].numel()
        moved = (given[0].numel() + found.numel() + part.weight.numel()) * dtype.itemsize
        spent.append(1e3 * max(operations / most.operations, moved / most.bytes))

    convolutions = [part for part in network.modules() if isinstance(part, nn.Conv2d)]
    handles = [part.register_forward_hook(count) for part in convolutions]
    for rows, columns in sizes:
        network(torch.zeros(1, 1, rows, columns))
    for handle in handles:
        handle.remove()
    return sum(spent)


@torch.inference_mode()
def network_alone(extractor: Extractor, images: list[PreparedImage]) -> None:
    """What the network says of all images at every size."""
    for same in zip(*(image.levels for image in images), strict=True):
        extractor._run([level.grey for level in same], [level.statistics for level in same])


def measure(
    extractor: Extractor, photograph: Photograph, size: tuple[int, int], batches: list[int], rounds: int
) -> list[dict[str, float | str | int]]:
    """A row for each size of the batch."""
    pixels = cv2.resize(photograph.pixels, size, interpolation=cv2.INTER_AREA)
    image = extractor.prepare(replace(photograph, pixels=pixels, orientation=1, stored_size=size))
    rows: list[dict[str, float | str | int]] = []
    for batch in batches:
        images = [image] * batch
        network = median_ms(lambda images=images: network_alone(extractor, images), rounds, extractor.device)
        whole = median_ms(lambda images=images: extractor.extract(images), rounds, extractor.device)
        rows.append(
            {
                "size": f"{size[0]}x{size[1]}",
                "precision": extractor.precision,
                "batch": batch,
                "network_ms": network / batch,
                "extract_ms": whole / batch,
                "images_per_s": 1e3 * batch / whole,
            }
        )
    return rows


def main() -> None:
    """Print a table, or --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, default=IMAGE)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--sizes", nargs="+", default=["640x480", "1600x1200"])
    parser.add_argument("--precisions", nargs="+", default=["auto", "float32"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    device = resolve_device(options.device)
    torch.set_num_threads(1)
    keep_freed_memory()
    network, photograph = load_network(packaged_weights()), read_image(options.image)
    settings = DetectionSettings(max_keypoints=KEYPOINTS)
    rows: list[dict[str, float | str | int | None]] = []
    for precision in options.precisions:
        extractor = Extractor(network, settings, device=device, precision=precision)
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(extractor.precision)
        most = None if dtype is None else peaks(device, dtype)
        for size in options.sizes:
            width, height = (int(edge) for edge in size.split("x"))
            seen = extractor.padded_sizes_of(width, height)
            bound = None if dtype is None or most is None else bound_ms(network, seen, dtype, most)
            found = measure(extractor, photograph, (width, height), options.batches, options.rounds)
            rows += [{**row, "bound_ms": bound} for row in found]
    if options.json:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
        print(json.dumps({"device": name, "rows": rows}))
        return
    print(
        f"{'size':>10} {'precision':>10} {'batch':>6} {'bound ms':>9} {'network ms':>11} {'extract ms':>11}  images/s"
    )
    for row in rows:
        bound = "" if row["bound_ms"] is None else f"{row['bound_ms']:.2f}"
        print(
            f"{row['size']:>10} {row['precision']:>10} {row['batch']:>6} {bound:>9} {row['network_ms']:>11.2f} ", end=""
        )
        print(f"{row['extract_ms']:>11.2f} {row['images_per_s']:>9.1f}")


if __name__ == "__main__":
    main()
