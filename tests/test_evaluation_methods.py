"""What is evaluated: OpenCV's features, our network, feature files; and that none is half a pixel off."""

from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import torch
from drawn import drawn_photograph
from evaluation_sets import half_from_whole, unit_rows, write_grey
from hostile_images import encoded
from PIL import Image

from sekd_cli.config import DetectionSettings
from sekd_cli.errors import InputFileError
from sekd_cli.evaluation.baselines import Orb, Sift
from sekd_cli.evaluation.homography import warp
from sekd_cli.evaluation.images import read_evaluation_image
from sekd_cli.evaluation.methods import ComputedMethod, LocalFeatures, match_mutually
from sekd_cli.evaluation.own import Sekd
from sekd_cli.evaluation.stored import Stored
from sekd_cli.feature_file import FeatureWriter, file_attributes
from sekd_cli.networks import CompactNetwork, DenseMaps
from sekd_cli.networks.base import as_fractions
from sekd_cli.stored_features import StoredFeatures

CPU = torch.device("cpu")


def grey(height: int = 480, width: int = 640) -> np.ndarray:
    return cv2.cvtColor(drawn_photograph(0, height, width), cv2.COLOR_RGB2GRAY)


def blobs(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Bright Gaussian blobs (height, width) uint8, far apart at fractions of pixels, and where they are, (N, 2)."""
    random = np.random.default_rng(5)
    y, x = np.arange(height), np.arange(width)
    centres, image = [], np.zeros((height, width))
    for row in range(40, height - 39, 64):
        for column in range(40, width - 39, 64):
            centre = (column + random.uniform(-4, 4), row + random.uniform(-4, 4))
            image += np.outer(np.exp(-((y - centre[1]) ** 2) / 32), np.exp(-((x - centre[0]) ** 2) / 32))
            centres.append(centre)
    return np.rint(40 + 200 * image).astype(np.uint8), np.array(centres)


class BlobNetwork(CompactNetwork):
    """Scores that are the image, smoothed: their peaks are the blobs' centres. Descriptors that mean nothing."""

    def prepared(self, image: torch.Tensor, statistics: torch.Tensor | None = None) -> torch.Tensor:
        return as_fractions(image)

    def layers(self, pixels: torch.Tensor) -> DenseMaps:
        kernel = torch.from_numpy(cv2.getGaussianKernel(9, 1.5) @ cv2.getGaussianKernel(9, 1.5).T).float()
        smooth = torch.nn.functional.conv2d(pixels, kernel[None, None], padding=4)
        logits = torch.logit((smooth[:, 0] * 0.9).clamp(0.01, 0.99))
        coarse = torch.ones(pixels.shape[0], 64, pixels.shape[2] // 8, pixels.shape[3] // 8)
        return DenseMaps(logits, (coarse,), coarse)

    def finished(self, maps: DenseMaps) -> DenseMaps:
        return maps


def errors_to_nearest(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Of every expected point that has one nearer than 3 pixels, found minus expected, (M, 2)."""
    difference = found[None] - expected[:, None]
    nearest = np.linalg.norm(difference, axis=2).argmin(axis=1)
    errors = difference[np.arange(len(expected)), nearest]
    near = np.linalg.norm(errors, axis=1) < 3
    assert near.mean() > 0.9
    return errors[near]


def blob_network() -> Sekd:
    return Sekd(BlobNetwork().eval(), "blobs", DetectionSettings(max_keypoints=0, threshold=0.5), CPU)


@pytest.mark.parametrize("make", [blob_network, lambda: Sift(0)], ids=["sekd", "sift"])
def test_a_pair_of_an_image_and_its_half_has_no_mean_signed_error(make: object, tmp_path: Path) -> None:
    method: ComputedMethod = make()  # type: ignore[operator]
    whole, centres = blobs(480, 640)
    half = cv2.resize(whole, (320, 240), interpolation=cv2.INTER_AREA)
    in_whole, in_half = (method.compute(image).keypoints for image in (whole, half))
    assert np.abs(errors_to_nearest(in_whole, centres).mean(axis=0)).max() < 0.05
    assert np.abs(errors_to_nearest(in_half, warp(centres, half_from_whole())).mean(axis=0)).max() < 0.05
    # and so when the evaluation shrinks the file itself
    cv2.imwrite(str(tmp_path / "whole.png"), whole)
    image = read_evaluation_image(tmp_path / "whole.png", 320)
    assert image.size == (320, 240)
    found = warp(method.features(image).keypoints, np.linalg.inv(image.evaluated_from_original))
    assert np.abs(errors_to_nearest(found, centres).mean(axis=0)).max() < 0.05


@pytest.mark.parametrize("budget", [100, 600])
@pytest.mark.parametrize("make", [Sift, lambda n: Sift(n, root=True), Orb], ids=["sift", "rootsift", "orb"])
def test_baselines_fill_their_budget_best_first(make: object, budget: int) -> None:
    features = make(budget).compute(grey())  # type: ignore[operator]
    assert len(features) == budget
    assert (np.diff(features.scores) <= 0).all()
    assert features.keypoints.shape == (budget, 2)


def test_a_budget_of_0_keeps_all_keypoints_of_the_default_threshold() -> None:
    assert len(Sift(0).compute(grey())) == len(cv2.SIFT.create(enable_precise_upscale=True).detect(grey(), None))
    assert len(Orb(0).compute(grey())) > 500


def test_rootsift_is_the_root_of_sift() -> None:
    plain, root = Sift(50).compute(grey()).descriptors, Sift(50, root=True).compute(grey()).descriptors
    np.testing.assert_allclose(np.linalg.norm(plain, axis=1), 1, atol=1e-5)
    squared = root**2
    np.testing.assert_allclose(squared / np.linalg.norm(squared, axis=1, keepdims=True), plain, atol=1e-5)


@pytest.mark.parametrize("make", [Sift, Orb])
def test_an_even_image_has_no_features_and_no_matches(make: type[Sift] | type[Orb]) -> None:
    method = make(100)
    nothing, something = method.compute(np.full((80, 80), 128, dtype=np.uint8)), method.compute(grey())
    assert len(nothing) == 0
    for pair in ((nothing, something), (something, nothing), (nothing, nothing)):
        assert method.match(*pair).shape == (0, 2)


@pytest.mark.parametrize("make", [Sift, Orb])
def test_an_image_matches_itself(make: type[Sift] | type[Orb]) -> None:
    method = make(200)
    features = method.compute(grey())
    matches = method.match(features, features)
    assert len(matches) > 150  # some descriptors are double
    np.testing.assert_array_equal(matches[:, 0], matches[:, 1])


def test_mutual_matches_find_a_permutation() -> None:
    rows = unit_rows(30)
    order = np.random.default_rng(0).permutation(30)
    matches = match_mutually(rows, rows[order])
    np.testing.assert_array_equal(order[matches[:, 1]], matches[:, 0])
    assert len(matches) == 30


def test_our_network_gives_the_budget_and_tells_how_long_the_network_took() -> None:
    torch.manual_seed(0)
    method = Sekd(CompactNetwork(), "own", DetectionSettings(max_keypoints=70, threshold=0), CPU)
    features = method.compute(grey(height=150, width=170))
    assert len(features) == 70
    assert features.descriptors.shape == (70, 64)
    assert method.network_seconds > 0
    assert (features.keypoints >= -0.5).all()
    assert (features.keypoints <= (169.5, 149.5)).all()


def test_images_are_shrunk_to_the_longer_edge_and_never_enlarged(tmp_path: Path) -> None:
    path = write_grey(tmp_path / "a.png", 1000, 300)
    assert read_evaluation_image(path, 640).size == (640, 192)
    assert read_evaluation_image(path, 0).size == read_evaluation_image(path, 1600).size == (1000, 300)
    assert read_evaluation_image(write_grey(tmp_path / "b.png", 3000, 1), 640).size == (640, 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_stay_as_they_lie_in_the_file_whatever_exif_says(tmp_path: Path, orientation: int) -> None:
    pixels = grey(height=30, width=50)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_evaluation_image(tmp_path / "turned.png", 0).grey, pixels)


def test_an_unreadable_image_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(InputFileError, match=r"bad\.png"):
        read_evaluation_image(tmp_path / "bad.png", 0)


def write_features(path: Path, names: list[str], size: tuple[int, int] = (200, 100), count: int = 5) -> Path:
    scores = np.linspace(0.1, 0.9, count, dtype=np.float32)  # ascending: other tools don't sort
    keypoints = np.stack((np.arange(count), np.arange(count)), axis=1).astype(np.float32) * 10
    features = StoredFeatures(keypoints=keypoints, scores=scores, descriptors=2 * unit_rows(count), image_size=size)
    with FeatureWriter(path, file_attributes(network="any", weights_sha256="", settings={})) as writer:
        for name in names:
            writer.write(name, features)
    return path


def test_stored_features_are_moved_to_the_evaluated_size_best_first_and_of_unit_length(tmp_path: Path) -> None:
    image = read_evaluation_image(write_grey(tmp_path / "set" / "a.png", 200, 100), 100)
    method = Stored(write_features(tmp_path / "mine.h5", ["set/a.png"]), max_keypoints=2)
    assert method.label == "mine"
    features = method.features(image)
    np.testing.assert_allclose(features.keypoints, [(19.75, 19.75), (14.75, 14.75)])  # (40 + 0.5) / 2 - 0.5
    np.testing.assert_allclose(features.scores, [0.9, 0.7])
    np.testing.assert_allclose(features.descriptors, unit_rows(5)[[4, 3]], atol=1e-6)


@pytest.mark.parametrize("name", ["a.png", "set/a.png"])
def test_a_stored_name_may_be_relative_to_any_folder_above(tmp_path: Path, name: str) -> None:
    image = read_evaluation_image(write_grey(tmp_path / "set" / "a.png", 200, 100), 0)
    method = Stored(write_features(tmp_path / "f.h5", ["b/a.png", name]), max_keypoints=0)
    assert len(method.features(image)) == 5


def test_a_stored_name_that_two_images_could_have_is_refused(tmp_path: Path) -> None:
    method = Stored(write_features(tmp_path / "f.h5", ["1.png"]), max_keypoints=0)
    first, second = (read_evaluation_image(write_grey(tmp_path / name / "1.png", 200, 100), 0) for name in "ab")
    method.features(first)
    method.features(first)
    with pytest.raises(InputFileError, match=r"1\.png could be .*extract the folder above"):
        method.features(second)


def test_stored_features_of_no_or_another_image_are_refused(tmp_path: Path) -> None:
    image = read_evaluation_image(write_grey(tmp_path / "a.png", 100, 200), 0)
    with pytest.raises(InputFileError, match=r"no features of .*a\.png"):
        Stored(write_features(tmp_path / "other.h5", ["c.png"]), 0).features(image)
    with pytest.raises(InputFileError, match="200x100 there, 100x200 here"):
        Stored(write_features(tmp_path / "turned.h5", ["a.png"]), 0).features(image)


def test_only_a_size_that_is_guessed_may_be_too_small(tmp_path: Path) -> None:
    image = read_evaluation_image(write_grey(tmp_path / "a.png", 200, 100), 0)
    smaller = write_features(tmp_path / "smaller.h5", ["a.png"], size=(100, 50))
    with pytest.raises(InputFileError, match="100x50 there, 200x100 here"):
        Stored(smaller, 0).features(image)
    with h5py.File(tmp_path / "other.h5", "w") as file:  # another tool's, without sizes
        file["a.png/keypoints"] = np.array([(10, 20), (30, 40)], dtype=np.float32)
        file["a.png/descriptors"] = unit_rows(2).T
        file["edge.png/keypoints"] = np.array([(10, 20), (199, 40)], dtype=np.float32)
        file["edge.png/descriptors"] = unit_rows(2).T
        file["wide.png/keypoints"] = np.array([(10, 20), (250, 40)], dtype=np.float32)
        file["wide.png/descriptors"] = unit_rows(2).T
    other = Stored(tmp_path / "other.h5", 0)
    edge, wide = (read_evaluation_image(write_grey(tmp_path / f"{name}.png", 200, 100), 0) for name in ("edge", "wide"))
    assert len(other.features(image)) == len(other.features(edge)) == 2
    with pytest.raises(InputFileError, match="251x41 there, 200x100 here"):
        other.features(wide)


def test_features_moved_by_a_homography_keep_all_else() -> None:
    features = LocalFeatures(
        keypoints=np.array([(1, 2), (3, 4)], dtype=np.float32),
        scores=np.ones(2, dtype=np.float32),
        descriptors=unit_rows(2),
    )
    moved = features.moved(half_from_whole())
    np.testing.assert_allclose(moved.keypoints, [(0.25, 0.75), (1.25, 1.75)])
    assert moved.descriptors is features.descriptors


def test_a_stored_descriptor_that_is_no_number_spoils_no_other(tmp_path: Path) -> None:
    image = read_evaluation_image(write_grey(tmp_path / "a.png", 200, 100), 0)
    path = write_features(tmp_path / "f.h5", ["a.png"])
    with h5py.File(path, "r+") as file:
        del file["a.png"].attrs["crc32"]
        file["a.png/descriptors"][0, 0] = np.nan
        file["a.png/descriptors"][0, 1] = np.inf
    method = Stored(path, 0)
    features = method.features(image)
    assert np.isfinite(features.descriptors).all()
    assert len(method.match(features, features)) == 5


def test_images_that_are_links_have_the_names_that_extract_gives(tmp_path: Path) -> None:
    stored = write_grey(tmp_path / "store" / "0f3a.png", 200, 100)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "1.png").symlink_to(stored)
    image = read_evaluation_image(tmp_path / "set" / "1.png", 0)
    assert len(Stored(write_features(tmp_path / "given.h5", ["set/1.png"]), 0).features(image)) == 5
    assert len(Stored(write_features(tmp_path / "real.h5", ["0f3a.png"]), 0).features(image)) == 5


def test_descriptors_of_other_widths_are_told(tmp_path: Path) -> None:
    method = Stored(write_features(tmp_path / "f.h5", ["a.png"]), 0)
    one, other = (
        LocalFeatures(
            keypoints=np.zeros((2, 2), np.float32), scores=np.ones(2, np.float32), descriptors=np.eye(2, width)
        )
        for width in (32, 64)
    )
    with pytest.raises(InputFileError, match="f: descriptors of 32 and 64 values"):
        method.match(one, other)


def test_a_large_jpeg_on_its_side_is_evaluated_in_the_grid_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(drawn_photograph(0, 480, 640), "JPEG", orientation=6))
    image = read_evaluation_image(tmp_path / "a.jpg", 250)
    assert image.original_size == (480, 640)
    assert image.size == (188, 250)
