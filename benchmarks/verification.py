"""What `sekd match --verify` makes of matches whose truth is known.

    python benchmarks/verification.py [--runs 20] [--poses]
    python benchmarks/verification.py --photographs RUN

Matches in 640x480 pixels: points of a scene in depth (for a homography of a plane) seen from two sides, with normal
errors of half a pixel, and points that have nothing to do with each other; the scores of right ones are higher by one
standard deviation. For each model, number of matches and share of right ones: how many of the runs keep a model, and
how many if only the number of inliers counts (the least of 15). With --poses: how far off the pose is that follows from
the model (the larger of both angles, degrees, median), the share of right matches that is kept, and milliseconds; as
the estimator leaves it, and fitted to all that agree. Also of errors like those of keypoints, most of which are smaller
and some larger: each match's has a deviation of its own, log-normal around a quarter of a pixel.
With --photographs it is told of what `sekd pairs --nearest 10` lists of the views of `benchmarks/retrieval.py`, as many
of each kind and a thousand of those that don't belong together: what share keeps a model, what share if chance is
judged as if points lay anywhere, and by the number of inliers alone. RUN is a folder of `sekd train`; of its
photographs some few do show the same.
"""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import cv2
import numpy as np
from retrieval import KINDS, views, write

from sekd_cli import model_fitting, verification
from sekd_cli.config import MatchingSettings
from sekd_cli.evaluation.cameras import Pose
from sekd_cli.evaluation.pose import pose_error
from sekd_cli.feature_file import FeatureReader
from sekd_cli.pair_matching import match_images, matchable_image
from sekd_cli.pairs import natural_order
from sekd_cli.retrieval import nearest
from sekd_cli.verification import DEFAULT_THRESHOLDS, Camera, verification_settings, verify

SIZE = (640, 480)
FOCAL = 600.0
CAMERA = Camera(focal=(FOCAL, FOCAL), centre=((SIZE[0] - 1) / 2, (SIZE[1] - 1) / 2))
NOISE = 0.5  # pixels, along x and y
MEDIAN_NOISE, SPREAD = 0.25, 0.9  # pixels, and of their logarithm, where each match has a deviation of its own


class Matches(NamedTuple):
    """Two views' points, and the pose between the views."""

    xy0: np.ndarray  # (M, 2) pixels
    xy1: np.ndarray  # (M, 2)
    scores: np.ndarray  # (M,)
    pose: Pose


def matches(count: int, right: int, *, flat: bool, random: np.random.Generator, mixed: bool = False) -> Matches:
    """So many matches, of which the first `right` are the same points of a scene; mixed: errors like keypoints'."""
    xy0 = random.uniform(0, SIZE, (count, 2))
    depth = np.full(count, 6.0) if flat else random.uniform(4, 10, count)
    angle = random.uniform(0.05, 0.2) * random.choice((-1, 1))
    turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    points = np.column_stack((CAMERA.directions(xy0), np.ones(count))) * depth[:, None]
    step = random.normal(scale=0.4, size=3) * (1, 0.5, 0.5)
    seen = points @ turn.T + step
    xy1 = seen[:, :2] / seen[:, 2:] * FOCAL + CAMERA.centre
    xy1[right:] = random.uniform(0, SIZE, (count - right, 2))
    deviations = random.lognormal(np.log(MEDIAN_NOISE), SPREAD, (count, 1)) if mixed else NOISE
    xy1 += random.normal(scale=deviations, size=xy1.shape)
    scores = random.normal(size=count) + (np.arange(count) < right)
    return Matches(xy0.astype(np.float32), xy1.astype(np.float32), scores, (turn, step))


def kept(model: str, count: int, share: float, runs: int) -> float:
    """Percent of runs whose matches keep a model."""
    settings = verification_settings(model)
    found = 0
    for run in range(runs):
        random = np.random.default_rng((run, count, round(100 * share)))
        given = matches(count, round(count * share), flat=model == "homography", random=random)
        found += verify(given.xy0, given.xy1, settings, (CAMERA, CAMERA), given.scores)[1] is not None
    return 100 * found / runs


def poses(model: str, count: int, share: float, runs: int, *, mixed: bool) -> tuple[float, float, float]:
    """Median error of the pose, degrees, percent of the right matches that are kept, and milliseconds."""
    settings, right = verification_settings(model), round(count * share)
    errors, shares, seconds = [], [], 0.0
    for run in range(runs):
        xy0, xy1, scores, truth = matches(
            count, right, flat=False, random=np.random.default_rng((run, count)), mixed=mixed
        )
        start = time.perf_counter()
        inliers, found = verify(xy0, xy1, settings, (CAMERA, CAMERA), scores)
        seconds += time.perf_counter() - start
        shares.append(100 * inliers[:right].mean())
        if found is None:
            errors.append(float("inf"))
            continue
        essential = found if model == "essential" else CAMERA.matrix.T @ found @ CAMERA.matrix
        directions = (CAMERA.directions(xy[inliers]) for xy in (xy0, xy1))
        _, turn, step, _ = cv2.recoverPose(essential, *directions, np.eye(3))
        errors.append(pose_error((np.asarray(turn), np.asarray(step)[:, 0]), truth))
    return float(np.median(errors)), float(np.mean(shares)), 1e3 * seconds / runs


@contextmanager
def left_as_estimated() -> Iterator[None]:
    """Models not fitted to all that agree."""
    settings = model_fitting.REFITS_LINES, model_fitting.RESAMPLINGS
    model_fitting.REFITS_LINES, model_fitting.RESAMPLINGS = 0, 0
    try:
        yield
    finally:
        model_fitting.REFITS_LINES, model_fitting.RESAMPLINGS = settings


def show_poses(runs: int) -> None:
    """Print a line a number of matches."""
    models = ("fundamental", "essential")
    print("degrees, % of the right ones kept, ms")
    print("errors  matches  right" + "".join(f"{name:>25}" for model in models for name in (model, "fitted to all")))
    cases = ((50, 0.3), (50, 0.8), (200, 0.15), (200, 0.3), (200, 0.8), (1000, 0.1), (1000, 0.3), (1000, 0.8))
    for mixed, (count, share) in product((False, True), cases):
        cells = []
        for model in models:
            with left_as_estimated():
                cells.append(poses(model, count, share, runs, mixed=mixed))
            cells.append(poses(model, count, share, runs, mixed=mixed))
        told = "".join(f"{error:9.2f} {kept:6.1f} {ms:8.1f}" for error, kept, ms in cells)
        print(f"{'mixed' if mixed else 'normal':7} {count:7} {share:6.0%}{told}", flush=True)


def listed_pairs(run: Path, count: int) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Matches of listed pairs and their scores, `count` of each kind and ten times as many of "apart", by the kind."""
    left = dict.fromkeys(KINDS, count) | {"apart": 10 * count}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "feats.h5"
        write(path, views(run, count, 3 * count))
        with FeatureReader(path) as reader:
            pairs = list(nearest(reader, natural_order(reader.names()), 10, {}))
            for row in np.random.default_rng(0).permutation(len(pairs)):
                kind, other = (name.rpartition("/")[0] for name in pairs[row])
                kind = kind.partition("/")[0] if kind == other else "apart"
                if left[kind]:
                    left[kind] -= 1
                    one, two = (matchable_image(name, reader.read(name)) for name in pairs[row])
                    found = match_images(one, two, MatchingSettings())
                    first, second = found.indices().T
                    yield kind, one.keypoints[first], two.keypoints[second], found.scores0[first]


def show_photographs(run: Path) -> None:
    """Print a line a kind of pairs."""
    judged, settings = verification.is_chance, verification_settings("fundamental")
    ways = {
        "kept": judged,
        "as if anywhere": lambda *given: judged(*given[:4]),
        "by number alone": lambda *_: False,
    }
    found: dict[str, list[list[bool]]] = {}
    for kind, xy0, xy1, scores in listed_pairs(run, 100):
        row = found.setdefault(kind, [])
        row.append([])
        for way in ways.values():
            verification.is_chance = way
            row[-1].append(verify(xy0, xy1, settings, scores=scores)[1] is not None)
    verification.is_chance = judged
    print(f"{'pairs':8} {'number':>6}" + "".join(f"{way:>18}" for way in ways))
    for kind in (*KINDS, "apart"):
        print(f"{kind:8} {len(found[kind]):6}" + "".join(f"{100 * share:16.1f} %" for share in np.mean(found[kind], 0)))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--poses", action="store_true")
    parser.add_argument("--photographs", type=Path, metavar="RUN")
    options = parser.parse_args()
    runs = options.runs
    if options.photographs is not None:
        show_photographs(options.photographs)
        return
    if options.poses:
        show_poses(runs)
        return
    judged = verification.is_chance
    print(f"{'model':12} matches  right   pairs kept   by number alone")
    for model in DEFAULT_THRESHOLDS:
        for count in (50, 200, 800, 2000):
            for share in (0.0, 0.1, 0.2, 0.3, 0.5, 0.8):
                verification.is_chance = judged
                now = kept(model, count, share, runs)
                verification.is_chance = lambda *_: False
                print(f"{model:12} {count:7} {share:6.0%} {now:10.0f} % {kept(model, count, share, runs):15.0f} %")


if __name__ == "__main__":
    main()
