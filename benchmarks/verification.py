"""What `sekd match --verify` makes of matches whose truth is known: python benchmarks/verification.py [--runs 20].

Matches in 640x480 pixels: points of a scene in depth (for a homography of a plane) seen from two sides, with normal
errors of half a pixel, and points that have nothing to do with each other. For each model, number of matches and share
of right ones: how many of the runs keep a model, and how many if only the number of inliers counts (the least of 15).
"""

import argparse

import numpy as np

from sekd_cli import verification
from sekd_cli.verification import DEFAULT_THRESHOLDS, Camera, verification_settings, verify

SIZE = (640, 480)
FOCAL = 600.0
CAMERA = Camera(focal=(FOCAL, FOCAL), centre=((SIZE[0] - 1) / 2, (SIZE[1] - 1) / 2))
NOISE = 0.5  # pixels, along x and y


def matches(count: int, right: int, *, flat: bool, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two views' points (count, 2), of which the first `right` are the same points of a scene."""
    xy0 = random.uniform(0, SIZE, (count, 2))
    depth = np.full(count, 6.0) if flat else random.uniform(4, 10, count)
    angle = random.uniform(0.05, 0.2) * random.choice((-1, 1))
    turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    points = np.column_stack((CAMERA.directions(xy0), np.ones(count))) * depth[:, None]
    seen = points @ turn.T + random.normal(scale=0.4, size=3) * (1, 0.5, 0.5)
    xy1 = seen[:, :2] / seen[:, 2:] * FOCAL + CAMERA.centre
    xy1[right:] = random.uniform(0, SIZE, (count - right, 2))
    return xy0, xy1 + random.normal(scale=NOISE, size=xy1.shape)


def kept(model: str, count: int, share: float, runs: int) -> float:
    """Percent of runs whose matches keep a model."""
    settings = verification_settings(model)
    found = 0
    for run in range(runs):
        random = np.random.default_rng((run, count, round(100 * share)))
        xy0, xy1 = matches(count, round(count * share), flat=model == "homography", random=random)
        found += verify(xy0.astype(np.float32), xy1.astype(np.float32), settings, (CAMERA, CAMERA))[1] is not None
    return 100 * found / runs


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    runs = parser.parse_args().runs
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
