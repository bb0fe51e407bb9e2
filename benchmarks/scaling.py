"""How time and memory grow with image size, keypoints, images and pairs: python benchmarks/scaling.py [--json].

Each line is fitted by a power; an exponent of 1 is growth in proportion. Time is CPU time on one thread, memory the
peak beyond what the process had before the work, each in a process of its own. Largest of all: 50 megapixels, taking
about 1 GB and ten seconds.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from measuring import CACHE_BYTES, cost, exponent, write_features

from sekd_cli.batch_extraction import BatchExtractor, Job
from sekd_cli.config import DetectionSettings, MatchingSettings, ViewSettings
from sekd_cli.device import keep_freed_memory, set_threads
from sekd_cli.evaluation.speed import draw_image
from sekd_cli.extraction import Extractor
from sekd_cli.extraction_pipeline import PipelineSettings, extract_all
from sekd_cli.feature_cache import plan
from sekd_cli.feature_file import FeatureReader, FeatureWriter, file_attributes
from sekd_cli.image_search import ImageEntry
from sekd_cli.images import Photograph
from sekd_cli.match_file import MatchWriter, match_attributes
from sekd_cli.match_pipeline import PairMatcher, match_all
from sekd_cli.match_pipeline import PipelineSettings as MatchSettings
from sekd_cli.networks.weights_file import load_network, packaged_weights
from sekd_cli.pairs import exhaustive

CPU = torch.device("cpu")
MEGAPIXELS = 0.3, 1, 3, 12, 50
KEYPOINTS = 1000, 4000, 16_000, 64_000
IMAGES = 8, 16, 32, 64
PAIRED_IMAGES = 8, 16, 32, 64  # 28 to 2,016 pairs
PAIRED_KEYPOINTS = 512

Work = Callable[[], object]


def photograph(width: int, height: int, folder: Path) -> Photograph:
    """A drawn picture of any size: the same texture, tiled and mirrored, so that keypoints are as dense everywhere."""
    texture = np.asarray(cv2.imread(str(draw_image(folder)), cv2.IMREAD_GRAYSCALE))
    rows, columns = -(-height // texture.shape[0]), -(-width // texture.shape[1])
    pixels = np.pad(texture, ((0, texture.shape[0] * (rows - 1)), (0, texture.shape[1] * (columns - 1))), "symmetric")
    return Photograph(pixels=pixels[:height, :width].copy(), orientation=1, stored_size=(width, height))


def extractor(max_keypoints: int = 2048) -> Extractor:
    """The shipped network, on images as they are."""
    settings = DetectionSettings(max_keypoints=max_keypoints, threshold=0)
    network = load_network(packaged_weights())
    return Extractor(network, settings, device=CPU, views=ViewSettings(max_size=0), precision="auto")


def extraction(one: Extractor, picture: Photograph) -> Work:
    """Extraction of one picture."""
    return lambda: one.extract([one.prepare(picture)])


def by_size(folder: Path) -> list[Work]:
    """A photograph of each of MEGAPIXELS, 4:3, all keypoints of the threshold kept in proportion."""
    sizes = [round((1e6 * size * 3 / 4) ** 0.5) for size in MEGAPIXELS]
    return [extraction(extractor(), photograph(height * 4 // 3, height, folder)) for height in sizes]


def by_keypoints(folder: Path) -> list[Work]:
    """So many keypoints of one photograph of 3 megapixels."""
    picture = photograph(2000, 1500, folder)
    return [extraction(extractor(count), picture) for count in KEYPOINTS]


def by_images(folder: Path) -> list[Work]:
    """So many files to one feature file."""
    path = draw_image(folder)
    one = BatchExtractor(extractor())

    def extract(count: int) -> None:
        jobs = [Job(ImageEntry(path, f"{index}.png")) for index in range(count)]
        attributes = file_attributes(network="compact", weights_sha256="", settings={})
        with FeatureWriter(folder / f"{count}.h5", attributes, overwrite=True) as writer:
            for outcome in extract_all(jobs, one, writer, PipelineSettings()):
                assert outcome.failure is None, outcome.failure

    return [lambda count=count: extract(count) for count in IMAGES]  # type: ignore[misc]


def by_pairs(folder: Path) -> list[Work]:
    """All pairs of so many images of one feature file to one match file."""
    path, names = folder / "feats.h5", [f"{index:03}.jpg" for index in range(max(PAIRED_IMAGES))]
    write_features(path, names, PAIRED_KEYPOINTS)

    def match(count: int) -> None:
        with (
            FeatureReader(path) as reader,
            MatchWriter(folder / f"matches{count}.h5", match_attributes(reader, {}), overwrite=True) as writer,
        ):
            work, settings = plan(exhaustive(names[:count])), MatchSettings(device=CPU)
            matcher = PairMatcher(path, CACHE_BYTES, MatchingSettings())
            for _ in match_all(work, reader, writer, settings, matcher=matcher):
                pass

    return [lambda count=count: match(count) for count in PAIRED_IMAGES]  # type: ignore[misc]


LINES: dict[str, tuple[Sequence[float], Callable[[Path], list[Work]]]] = {
    "megapixels": (MEGAPIXELS, by_size),
    "keypoints": (KEYPOINTS, by_keypoints),
    "images": (IMAGES, by_images),
    "pairs": ([count * (count - 1) / 2 for count in PAIRED_IMAGES], by_pairs),
}


def measure(name: str, repeats: int) -> dict[str, Any]:
    """Sizes, seconds, megabytes and the two exponents of one line."""
    sizes, works = LINES[name]
    with tempfile.TemporaryDirectory() as folder:
        made = works(Path(folder))
        costs = [cost(work, warm_up=made[0], repeats=repeats) for work in made]
    seconds, megabytes = ([one[field] for one in costs] for field in (0, 1))
    return {
        "sizes": list(sizes),
        "seconds": seconds,
        "megabytes": megabytes,
        "time_exponent": exponent(sizes, seconds),
        "memory_exponent": exponent(sizes, np.maximum(megabytes, 1).tolist()),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", nargs="+", choices=list(LINES), default=list(LINES))
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    set_threads(1)
    keep_freed_memory()
    found = {}
    for name in options.lines:
        found[name] = one = measure(name, options.repeats)
        if options.json:
            continue
        print(f"{name}: time ~ {name}^{one['time_exponent']:.2f}, memory ~ {name}^{one['memory_exponent']:.2f}")
        for size, seconds, megabytes in zip(one["sizes"], one["seconds"], one["megabytes"], strict=True):
            print(f"  {size:>10,g} {1e3 * seconds:10,.0f} ms {megabytes:8,.0f} MB", flush=True)
    if options.json:
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
