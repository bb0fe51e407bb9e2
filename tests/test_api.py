import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hostile_images import drawn, encoded
from test_verification import CAMERA, HALF, scene

import sekd_cli
from sekd_cli import Camera, Features, Sekd
from sekd_cli.errors import DeviceError, ImageError, InputFileError, UsageError


@pytest.fixture(scope="module")
def sekd(untrained_weights: Path) -> Sekd:
    return Sekd.from_pretrained(untrained_weights, device="cpu", max_keypoints=300, threshold=0.0)


def features_from(descriptors: list[list[float]]) -> Features:
    rows = torch.nn.functional.normalize(torch.tensor(descriptors, dtype=torch.float32), dim=1)
    keypoints = torch.arange(2.0 * len(rows)).reshape(-1, 2)
    return Features(keypoints=keypoints, scores=torch.ones(len(rows)), descriptors=rows, image_size=(64, 48))


def test_a_file_and_its_pixels_have_the_same_features(sekd: Sekd, examples: Path) -> None:
    from_file = sekd.extract(examples / "box.png")
    from_pixels = sekd.extract(cv2.imread(str(examples / "box.png"), cv2.IMREAD_GRAYSCALE))
    assert len(from_file) == 300
    assert from_file.image_size == (324, 223)
    assert from_file.keypoints.dtype == torch.float32
    assert torch.equal(from_file.keypoints, from_pixels.keypoints)
    assert torch.equal(from_file.descriptors, from_pixels.descriptors)
    torch.testing.assert_close(from_file.descriptors.norm(dim=1), torch.ones(300))


def test_a_mask_has_the_size_of_a_jpeg_that_is_decoded_smaller(untrained_weights: Path, tmp_path: Path) -> None:
    sekd = Sekd.from_pretrained(untrained_weights, device="cpu", threshold=0.0, max_size=200)
    (tmp_path / "a.jpg").write_bytes(encoded(cv2.resize(drawn(), (640, 480)), "JPEG", orientation=6))
    mask = np.ones((640, 480), bool)  # in the grid of the file
    mask[:, 240:] = False
    found = sekd.extract(tmp_path / "a.jpg", mask=mask)
    assert found.image_size == (480, 640)
    assert len(found) > 30
    assert found.keypoints[:, 0].max() < 240


def test_pixels_may_be_colour_or_fractions_or_deep(sekd: Sekd, examples: Path) -> None:
    grey = cv2.imread(str(examples / "box.png"), cv2.IMREAD_GRAYSCALE)
    grey[0, :2] = 0, 255  # the whole range, so that every depth is the same picture
    expected = sekd.extract(grey).keypoints
    for same in (np.stack([grey] * 3, axis=2), grey / 255, grey.astype(np.uint16) * 257, grey[::-1][::-1]):
        torch.testing.assert_close(sekd.extract(same).keypoints, expected)


def test_colours_of_an_array_are_red_green_and_blue(sekd: Sekd, tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    rgb = cv2.resize(colours, (256, 192), interpolation=cv2.INTER_CUBIC)
    (tmp_path / "rgb.png").write_bytes(encoded(rgb, "PNG"))
    expected = sekd.extract(tmp_path / "rgb.png").keypoints
    assert torch.equal(sekd.extract(rgb).keypoints, expected)
    assert not torch.equal(sekd.extract(rgb[..., ::-1]).keypoints, expected)


def test_truth_values_are_black_and_white(sekd: Sekd) -> None:
    dots = np.random.default_rng(0).random((96, 128)) > 0.9
    assert torch.equal(sekd.extract(dots).keypoints, sekd.extract(dots.astype(np.uint8) * 255).keypoints)


def test_every_option_of_extraction_counts(untrained_weights: Path, examples: Path) -> None:
    def features(**options: Any) -> Features:
        chosen = {"threshold": 0.0, "scales": 1, "subpixel": False} | options
        return Sekd.from_pretrained(untrained_weights, device="cpu", **chosen).extract(examples / "box.png")

    plain, refined = features().keypoints, features(subpixel=True).keypoints
    assert torch.equal(plain, plain.round())
    assert not torch.equal(refined, refined.round())
    few = features(nms_radius=10).keypoints
    assert torch.cdist(few, few, p=torch.inf).fill_diagonal_(torch.inf).min() > 10
    assert features(max_size=162).scales.min() > 1.9
    for options in ({"precision": "float32", "tile": 1024}, {"precision": "bfloat16", "tile": 0}):
        extractor = Sekd.from_pretrained(untrained_weights, device="cpu", **options)._extractor  # type: ignore[arg-type]
        assert {"precision": extractor.precision, "tile": extractor.tile} == options


@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_the_default_device_of_a_program_is_not_that_of_its_features(
    precision: str, untrained_weights: Path, examples: Path
) -> None:
    def found() -> tuple[Features, Features]:
        sekd = Sekd.from_pretrained(untrained_weights, device="cpu", threshold=0.0, precision=precision)
        features = sekd.extract(examples / "box.png")
        assert len(sekd.match(features, features, temperature=0.1)) == len(features)
        return features, sekd.extract(np.zeros((40, 40), np.uint8))

    expected = found()
    with torch.device("meta"):  # any but the CPU
        for features, same in zip(found(), expected, strict=True):
            assert torch.equal(features.keypoints, same.keypoints)
            assert torch.equal(features.descriptors, same.descriptors)
        assert torch.zeros(1).is_meta


def test_an_image_matches_itself_keypoint_by_keypoint(sekd: Sekd, examples: Path) -> None:
    features = sekd.extract(str(examples / "box.png"))
    matches = sekd.match(features, features)
    assert len(matches) == len(features)
    assert torch.equal(matches.indices[:, 0], matches.indices[:, 1])
    assert torch.equal(matches.keypoints0, matches.keypoints1)
    torch.testing.assert_close(matches.scores, torch.ones(len(matches)))


def test_matches_name_the_keypoints_of_both_images(sekd: Sekd) -> None:
    one = features_from([[1, 0, 0], [0, 1, 0], [0, 0, 1]])
    other = features_from([[0, 0, 1], [1, 0, 0]])
    matches = sekd.match(one, other)
    assert matches.indices.tolist() == [[0, 1], [2, 0]]
    assert matches.keypoints0.tolist() == [[0, 1], [4, 5]]
    assert matches.keypoints1.tolist() == [[2, 3], [0, 1]]


def test_filters_leave_matches_out(sekd: Sekd) -> None:
    one, other = features_from([[1, 0], [0, 1]]), features_from([[1, 0.9], [0.1, 1]])
    assert len(sekd.match(one, other)) == 2
    assert sekd.match(one, other, min_similarity=0.9).indices.tolist() == [[1, 1]]
    with pytest.raises(UsageError, match="--ratio"):
        sekd.match(one, other, ratio=0)


def test_a_dual_softmax_has_probabilities_for_scores(sekd: Sekd) -> None:
    one, other = features_from([[1, 0], [0, 1]]), features_from([[1, 0.9], [0.1, 1]])
    likelihood = ((one.descriptors @ other.descriptors.T) / 0.1).exp()
    expected = (likelihood / likelihood.sum(dim=0)) * (likelihood / likelihood.sum(dim=1, keepdim=True))
    scores = sekd.match(one, other, temperature=0.1).scores
    torch.testing.assert_close(scores, expected.diagonal())
    assert len(sekd.match(one, other, temperature=0.1, min_probability=float(scores.mean()))) == 1


def test_a_photograph_turned_by_a_quarter_matches_keypoint_by_keypoint(untrained_weights: Path, examples: Path) -> None:
    pixels = cv2.imread(str(examples / "box.png"), cv2.IMREAD_GRAYSCALE)
    turning = Sekd.from_pretrained(
        untrained_weights, device="cpu", max_keypoints=100, threshold=0.0, scales=[0.5], rotations=True
    )
    upright, turned = turning.extract(pixels), turning.extract(np.rot90(pixels, 3))
    assert upright.scales is not None
    assert set(upright.scales.round().tolist()) == {2}
    matches = turning.match(upright, turned, rotations=True)
    assert matches.turn == 1
    height = pixels.shape[0]
    expected = torch.stack((height - 1 - matches.keypoints0[:, 1], matches.keypoints0[:, 0]), dim=1)
    right = (matches.keypoints1 - expected).abs().amax(dim=1) < 0.1
    assert int(right.sum()) > 90
    with pytest.raises(UsageError, match="extract with rotations=True"):
        turning.match(upright, features_from([[1.0] * 64]), rotations=True)


def test_nothing_matches_an_image_without_keypoints(sekd: Sekd) -> None:
    blank = sekd.extract(np.full((40, 60), 128, dtype=np.uint8))
    assert len(blank) == 0
    matches = sekd.match(blank, sekd.extract(np.random.default_rng(0).random((64, 64))))
    assert matches.indices.shape == (0, 2)
    assert matches.keypoints1.shape == (0, 2)


def test_features_of_different_networks_do_not_match(sekd: Sekd) -> None:
    with pytest.raises(UsageError, match="2 and 3 values"):
        sekd.match(features_from([[1, 0]]), features_from([[1, 0, 0]]))


@pytest.mark.parametrize("shape", [(0, 5), (5,), (3, 8, 8), (8, 8, 4), (1, 8, 8, 3)])
def test_an_array_that_is_no_image_is_refused(sekd: Sekd, shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match=r"give \(H, W\)"):
        sekd.extract(np.zeros(shape))


def test_what_is_neither_a_path_nor_an_array_is_refused(sekd: Sekd) -> None:
    with pytest.raises(ImageError, match="type list"):
        sekd.extract([[0, 1]])  # type: ignore[arg-type]


def test_what_is_wrong_is_said_as_on_the_command_line(untrained_weights: Path, tmp_path: Path, sekd: Sekd) -> None:
    with pytest.raises(InputFileError, match="no such weights"):
        Sekd.from_pretrained(tmp_path / "missing.safetensors")
    with pytest.raises(UsageError, match="--device tpu"):
        Sekd.from_pretrained(untrained_weights, device="tpu")
    with pytest.raises(DeviceError, match="cuda:99"):
        Sekd.from_pretrained(untrained_weights, device="cuda:99")
    with pytest.raises(UsageError, match="--max-keypoints"):
        Sekd.from_pretrained(untrained_weights, max_keypoints=-1)
    with pytest.raises(ImageError, match=r"missing\.jpg"):
        sekd.extract(tmp_path / "missing.jpg")


def test_the_package_is_imported_without_torch() -> None:
    program = "import sys, sekd_cli; sekd_cli.__version__; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_package_has_only_the_names_it_declares() -> None:
    assert {name for name in sekd_cli.__all__ if hasattr(sekd_cli, name)} == set(sekd_cli.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Sheep'"):
        _ = sekd_cli.Sheep


def test_matches_are_verified_as_on_the_command_line(sekd: Sekd) -> None:
    random = np.random.default_rng(0)
    descriptors = random.normal(size=(60, 16)).astype(np.float32).tolist()
    one, other = features_from(descriptors), features_from(descriptors)
    xy = torch.from_numpy(random.uniform(0, 400, (60, 2)).astype(np.float32))
    moved = xy + torch.tensor([30.0, -10.0])
    moved[40:] = torch.from_numpy(random.uniform(0, 400, (20, 2)).astype(np.float32))
    one, other = replace(one, keypoints=xy), replace(other, keypoints=moved)
    assert sekd.match(one, other).model is None
    matches = sekd.match(one, other, verify="homography")
    assert matches.indices[:, 0].tolist() == list(range(40))
    assert matches.model is not None
    shift = matches.model / matches.model[2, 2]
    torch.testing.assert_close(shift[:2, 2], torch.tensor([30.0, -10.0], dtype=torch.float64), atol=0.1, rtol=0)
    assert len(sekd.match(one, other, verify="homography", min_inliers=41)) == 0
    camera = Camera(focal=(500.0, 500.0), centre=(200.0, 200.0))
    assert len(sekd.match(one, other, verify="essential", cameras=(camera, camera), min_inliers=0)) > 0
    for wrong in ({"verify": "line"}, {"verify": "essential"}, {"verify": "fundamental", "cameras": (camera, camera)}):
        with pytest.raises(UsageError, match=r"verify|cameras"):
            sekd.match(one, other, **wrong)  # type: ignore[arg-type]


def test_verified_matches_are_aligned_by_the_images_pixels(sekd: Sekd, examples: Path) -> None:
    pixels = cv2.imread(str(examples / "china.jpg"), cv2.IMREAD_GRAYSCALE)[:320, :448]
    moved = cv2.warpAffine(pixels, np.array([[1, 0, 5.5], [0, 1, -3.25]]), (448, 320), flags=cv2.INTER_CUBIC)
    random = np.random.default_rng(0)
    xy = cv2.goodFeaturesToTrack(pixels[30:-30, 30:-30], 80, 0.01, 8)[:, 0] + 30
    truth = torch.from_numpy(xy + np.float32((5.5, -3.25)))
    features = replace(features_from(random.normal(size=(len(xy), 16)).tolist()), image_size=(448, 320))
    one = replace(features, keypoints=torch.from_numpy(xy))
    other = replace(features, keypoints=truth + torch.from_numpy(random.normal(0, 0.5, xy.shape).astype(np.float32)))
    plain = sekd.match(one, other, verify="homography")
    aligned = sekd.match(one, other, verify="homography", refine=(pixels, moved))
    before, after = ((found.keypoints1 - truth[found.indices[:, 0]]).norm(dim=1) for found in (plain, aligned))
    assert before.median() > 0.4
    assert after.median() < 0.1
    assert len(aligned) > 0.8 * len(plain)
    torch.testing.assert_close(aligned.keypoints0, one.keypoints[aligned.indices[:, 0]])
    with pytest.raises(UsageError, match="refine: only with verify"):
        sekd.match(one, other, refine=(pixels, moved))
    with pytest.raises(ImageError, match="447x320 pixels, but its features are of 448x320"):
        sekd.match(one, other, verify="homography", refine=(pixels[:, 1:], moved))


def test_files_align_matches_too(sekd: Sekd, examples: Path) -> None:
    both = examples / "motorcycle_left.jpg", examples / "motorcycle_right.jpg"
    features = [sekd.extract(path) for path in both]
    same = sekd.match(features[0], features[0], verify="homography", refine=(both[0], both[0]))
    assert len(same) > 0.9 * len(features[0])
    assert (same.keypoints1 - same.keypoints0).norm(dim=1).median() < 0.01
    with pytest.raises(ImageError, match=r"missing\.jpg"):
        sekd.match(features[0], features[0], verify="homography", refine=(both[0], Path("missing.jpg")))


@pytest.mark.parametrize("images", [(), ("a.jpg",), ("a.jpg", None), "ab", Path("a.jpg"), True, np.zeros((2, 48, 64))])
def test_images_that_are_no_two_are_told(sekd: Sekd, images: Any) -> None:
    features = features_from(np.eye(16).tolist())
    with pytest.raises(UsageError, match=r"refine: give both images, as \(image0, image1\)"):
        sekd.match(features, features, verify="homography", refine=images)


def test_scales_that_are_being_learned_do_too(sekd: Sekd, examples: Path) -> None:
    image = examples / "motorcycle_left.jpg"
    features = sekd.extract(image)
    learned = replace(features, scales=torch.ones(len(features), requires_grad=True))
    one, other = (sekd.match(each, each, verify="homography", refine=(image, image)) for each in (features, learned))
    assert torch.equal(one.keypoints1, other.keypoints1)


def test_the_threshold_of_verification_is_the_callers(sekd: Sekd) -> None:
    random = np.random.default_rng(0)
    descriptors = random.normal(size=(60, 16)).tolist()
    xy = torch.from_numpy(random.uniform(0, 400, (60, 2)).astype(np.float32))
    rough = xy + torch.from_numpy(random.normal(scale=2, size=(60, 2)).astype(np.float32))
    one, other = (replace(features_from(descriptors), keypoints=place) for place in (xy, rough))
    strict, usual, lax = (
        len(sekd.match(one, other, verify="homography", verify_threshold=pixels)) for pixels in (1.5, None, 9)
    )
    assert strict < usual < lax == 60


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int64])
def test_keypoints_of_any_type_of_number_are_verified(sekd: Sekd, dtype: torch.dtype) -> None:
    random = np.random.default_rng(0)
    xy = torch.from_numpy(random.integers(0, 1000, (60, 2))).to(dtype)
    one, other = (replace(features_from(random.normal(size=(60, 16)).tolist()), keypoints=xy) for _ in range(2))
    assert sekd.match(one, replace(one, keypoints=xy + 8), verify="homography", min_inliers=60).model is not None
    assert sekd.match(one, other, verify="homography").model is None


def test_each_photograph_has_its_own_camera(sekd: Sekd) -> None:
    xy0, xy1, _ = scene(100, 0)
    descriptors = np.random.default_rng(0).normal(size=(100, 16)).tolist()
    one, other = (
        replace(features_from(descriptors), keypoints=torch.from_numpy(xy)) for xy in (xy0, (xy1 + 0.5) / 2 - 0.5)
    )
    assert len(sekd.match(one, other, verify="essential", cameras=(CAMERA, HALF))) > 95
    assert len(sekd.match(other, one, verify="essential", cameras=(HALF, CAMERA))) > 95


def test_how_to_verify_without_verifying_is_an_error(sekd: Sekd) -> None:
    one = features_from([[1, 0], [0, 1]])
    for idle in ({"min_inliers": 3}, {"verify_threshold": 2.0}):
        with pytest.raises(UsageError, match="only with verify"):
            sekd.match(one, one, **idle)  # type: ignore[arg-type]


def test_a_mask_keeps_keypoints_off(sekd: Sekd, examples: Path) -> None:
    mask = np.zeros((223, 324), np.uint8)
    mask[:, 162:] = 255
    features = sekd.extract(examples / "box.png", mask=mask)
    assert len(features) > 100
    assert features.keypoints[:, 0].min() >= 161
    with pytest.raises(ImageError, match=r"mask of shape \(324, 223\), but its image has 223 rows of 324 pixels"):
        sekd.extract(examples / "box.png", mask=mask.T)


@pytest.mark.parametrize(
    ("mask", "kind"),
    [([[0, 1]], "list"), ("mask.png", "str"), (torch.ones(223, 324), "Tensor"), (np.full((223, 324), "x"), "<U1")],
)
def test_a_mask_that_is_no_array_of_numbers_is_named(sekd: Sekd, examples: Path, mask: Any, kind: str) -> None:
    with pytest.raises(ImageError, match=f"a mask of type {kind}: give a numpy array"):
        sekd.extract(examples / "box.png", mask=mask)


def test_a_mask_lies_as_the_file_does(sekd: Sekd, tmp_path: Path) -> None:
    (tmp_path / "turned.png").write_bytes(encoded(drawn(), "PNG", orientation=6))
    mask = np.zeros((128, 96), np.uint8)
    mask[:, 48:] = 1
    features = sekd.extract(tmp_path / "turned.png", mask=mask)
    assert len(features) > 0
    assert features.keypoints[:, 0].round().min() >= 48


def test_the_largest_image_is_up_to_the_caller(untrained_weights: Path, examples: Path) -> None:
    with pytest.raises(sekd_cli.ImageError, match="more than"):
        Sekd.from_pretrained(untrained_weights, device="cpu", max_pixels=1000).extract(examples / "box.png")


def test_one_number_is_one_scale_and_a_device_may_be_torchs(untrained_weights: Path, examples: Path) -> None:
    one = Sekd.from_pretrained(untrained_weights, device=torch.device("cpu"), scales=0.5, threshold=0.0)
    assert set(one.extract(examples / "box.png").scales.round().tolist()) == {2}


def test_features_are_compared_by_identity(sekd: Sekd) -> None:
    one, other = features_from([[1, 0]]), features_from([[1, 0]])
    assert one != other
    assert one in [other, one]
    assert sekd.match(one, other) != sekd.match(one, other)


def test_features_from_elsewhere_need_not_be_of_unit_length_finite_or_without_gradient(sekd: Sekd) -> None:
    one, other = features_from([[1, 0, 0], [0, 1, 0]]), features_from([[0, 1, 0], [1, 0, 0]])
    rows = 100 * one.descriptors
    rows[1, 2] = torch.nan
    odd = replace(one, descriptors=rows, keypoints=one.keypoints.requires_grad_())
    assert sekd.match(odd, other).indices.tolist() == [[0, 1], [1, 0]]
    with pytest.raises(UsageError, match="2 keypoints, 1 descriptors"):
        sekd.match(replace(one, descriptors=rows[:1]), other)
    with pytest.raises(UsageError, match="not finite"):
        sekd.match(one, replace(other, keypoints=other.keypoints * torch.nan))


def test_cameras_that_are_none_are_told(sekd: Sekd) -> None:
    features = features_from([[1, 0], [0, 1]])
    camera = Camera(focal=(500, 500), centre=(320, 240))
    for cameras in ((camera,), (camera, None), camera):
        with pytest.raises(UsageError, match="give both"):
            sekd.match(features, features, verify="essential", cameras=cameras)  # type: ignore[arg-type]
    nan, inf = float("nan"), float("inf")
    for values in ((0, 0, 5, 5), (nan, 1, 5, 5), (-1, 1, 5, 5), (1, -1, 5, 5), (1, 1, nan, 5), (1, 1, 5, inf)):
        with pytest.raises(UsageError, match="focal lengths are positive"):
            Camera(focal=values[:2], centre=values[2:])
