from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from drawn import drawn_photograph
from hostile_images import drawn, encoded

from sekd_cli.config import DetectionSettings, ViewSettings
from sekd_cli.errors import ImageError, UsageError
from sekd_cli.extraction import APPLE_GPU, TILE_PIXELS, Extractor
from sekd_cli.images import Photograph, read_image, to_stored
from sekd_cli.networks import NETWORKS, CompactNetwork, DenseMaps, DenseNetwork, PublishedNetwork
from sekd_cli.networks.base import as_fractions
from sekd_cli.networks.precision import possible_precisions
from sekd_cli.networks.weights_file import load_network, packaged_weights
from sekd_cli.stored_features import StoredFeatures
from sekd_cli.tiles import REACH

CPU = torch.device("cpu")
PRECISIONS = possible_precisions(CPU, quantisable=True)


class Peaks(DenseNetwork):
    """Fires on bright pixels, and describes a place by its column, its row and one: known answers."""

    name = "compact"
    stride = 32
    descriptor_dim = 3
    default_threshold = 0.5
    default_nms_radius = 4
    default_scales = (1.0,)

    def prepared(self, image: torch.Tensor, statistics: torch.Tensor | None = None) -> torch.Tensor:
        assert statistics is not None
        return as_fractions(image)

    def layers(self, pixels: torch.Tensor) -> DenseMaps:
        batch, _, height, width = pixels.shape
        assert height % self.stride == width % self.stride == 0
        x = torch.arange(width).expand(batch, height, width) / 1000
        y = torch.arange(height)[:, None].expand(batch, height, width) / 1000
        return DenseMaps(20 * pixels[:, 0] - 10, (torch.stack((x, y, torch.ones_like(x)), dim=1),), pixels)


def photograph_of(pixels: np.ndarray) -> Photograph:
    height, width = pixels.shape[:2]
    return Photograph(pixels=pixels, orientation=1, stored_size=(width, height))


def dots(height: int, width: int, *xy: tuple[int, int]) -> np.ndarray:
    """Grey with white pixels here and there."""
    pixels = np.zeros((height, width), dtype=np.uint8)
    for x, y in xy:
        pixels[y, x] = 255
    return pixels


def extractor(network: DenseNetwork | None = None, *, tile: int | None = None, **options: Any) -> Extractor:
    views = {key: options.pop(key) for key in ("max_size", "scales", "rotations") if key in options}
    network, detection = network or Peaks(), DetectionSettings(**options)
    images = 1 if isinstance(network, Peaks) else None  # not recorded: those below listen and fail
    return Extractor(network, detection, device=CPU, views=ViewSettings(**views), tile=tile, images=images)


def extract(one: Extractor, photograph: Photograph, mask: np.ndarray | None = None) -> StoredFeatures:
    return one.extract([one.prepare(photograph, mask)])[0]


def untrained() -> CompactNetwork:
    torch.manual_seed(0)
    return CompactNetwork()


def test_keypoints_are_where_the_pixels_are_best_first() -> None:
    pixels = dots(50, 70, (3, 4), (68, 48), (40, 20))
    pixels[20, 40] = 200
    features = extract(extractor(), photograph_of(pixels))
    np.testing.assert_allclose(features.keypoints, [[3, 4], [68, 48], [40, 20]], atol=1e-4)
    assert features.scores[0] > features.scores[2] > 0.5
    assert features.image_size == (70, 50)
    np.testing.assert_array_equal(features.scales, [1, 1, 1])


def test_types_are_those_of_the_file() -> None:
    features = extract(extractor(), photograph_of(dots(40, 40, (7, 7))))
    for values in (features.keypoints, features.scores, features.descriptors, features.scales):
        assert values is not None
        assert values.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(features.descriptors, axis=1), 1, rtol=1e-6)


def test_keypoints_of_a_shrunk_photograph_are_in_its_own_pixels() -> None:
    """Each pixel that the network sees is a 4x4 block, whose centre lies 1.5 pixels from the block's first."""
    pixels = cv2.resize(dots(30, 40, (5, 8)), (160, 120), interpolation=cv2.INTER_NEAREST)
    features = extract(extractor(max_size=40), photograph_of(pixels))
    np.testing.assert_allclose(features.keypoints, [[5 * 4 + 1.5, 8 * 4 + 1.5]], atol=1e-4)
    np.testing.assert_allclose(features.scales, [4])


def test_width_and_height_may_shrink_by_different_factors() -> None:
    """From 402x82 to 100x20, by 4.02 and 4.1."""
    x, y = np.meshgrid(np.arange(402), np.arange(82))
    pixels = np.rint(140 * np.exp(-((x - 300) ** 2 + (y - 60) ** 2) / 300)).astype(np.uint8)
    features = extract(extractor(max_size=100), photograph_of(pixels))
    np.testing.assert_allclose(features.keypoints, [[300, 60]], atol=0.4)
    np.testing.assert_allclose(features.scales, [(4.02 * 4.1) ** 0.5], rtol=1e-6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_keypoints_are_stored_in_the_grid_of_the_file(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "turned.png"
    path.write_bytes(encoded(dots(50, 70, (3, 4), (60, 20)), "PNG", orientation=orientation))
    stored = cv2.imdecode(np.fromfile(path, dtype=np.uint8), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)
    features = extract(extractor(), read_image(path))
    y, x = np.nonzero(stored)
    assert sorted(map(tuple, features.keypoints.round().astype(int))) == sorted(zip(x, y, strict=True))
    assert features.image_size == stored.shape[::-1]


def test_all_orientations_of_a_photograph_have_the_same_keypoints(tmp_path: Path) -> None:
    """The eight files look alike; each holds its pixels in another order, and its keypoints with them."""
    one = extractor(untrained(), threshold=0, max_size=100)
    pictures = []
    for orientation in range(1, 9):
        path = tmp_path / f"{orientation}.png"
        path.write_bytes(encoded(drawn(), "PNG", orientation=orientation))
        photograph = read_image(path)
        features = extract(one, photograph)
        height, width = photograph.pixels.shape
        corners = np.array([[0, 0], [width - 1, 0], [0, height - 1]], dtype=np.float64)
        origin, right, down = to_stored(corners, photograph.orientation, photograph.stored_size)
        across, along = (right - origin) / (width - 1), (down - origin) / (height - 1)
        upright = (features.keypoints - origin) @ np.stack((across, along), axis=1)
        pictures.append(upright)
        np.testing.assert_allclose(upright, pictures[0], atol=0.01)
    assert len(pictures[0]) > 30


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_jpeg_decoded_smaller_has_its_keypoints_where_the_whole_one_has_them(
    tmp_path: Path, orientation: int
) -> None:
    path = tmp_path / "large.jpg"
    picture = cv2.resize(drawn_photograph(1, 480, 640), (1280, 960), interpolation=cv2.INTER_CUBIC)
    path.write_bytes(encoded(picture, "JPEG", orientation=orientation))
    one = Extractor(
        load_network(packaged_weights()),
        DetectionSettings(max_keypoints=150),
        device=CPU,
        views=ViewSettings(max_size=430),
    )
    mask = np.ones((960, 1280), bool)
    mask[:, 900:] = False
    smaller, whole = read_image(path, enough=one.enough), read_image(path)
    assert smaller.pixels.shape == (480, 640)
    for allowed in (None, mask):
        quick, slow = (extract(one, photograph, allowed) for photograph in (smaller, whole))
        assert quick.image_size == slow.image_size == smaller.stored_size
        assert len(quick) == len(slow) == 150
        apart = quick.keypoints[:, None] - slow.keypoints
        nearest = np.linalg.norm(apart, axis=2).argmin(axis=1)
        apart = apart[np.arange(len(quick)), nearest]
        assert (np.linalg.norm(apart, axis=1) < 1.5).mean() > 0.8, "half a pixel of what the network sees"
        assert np.abs(np.median(apart, axis=0)).max() < 0.15


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(1, 40), (2, 2), (3, 300), (31, 33), (33, 31), (64, 64)])
def test_images_of_any_size_have_all_their_keypoints_inside(name: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    pixels = drawn(320, 320)[: size[0], : size[1], 0]
    features = extract(extractor(NETWORKS[name](), threshold=0), photograph_of(pixels))
    assert len(features) > 0 or min(size) < 4, "all on the edge"
    assert (features.keypoints >= -0.5).all()
    assert (features.keypoints <= np.array(size[::-1]) - 0.5).all()
    assert np.isfinite(features.descriptors).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (64, 64)])
def test_an_even_image_has_no_keypoints(size: tuple[int, int]) -> None:
    features = extract(extractor(untrained(), threshold=0), photograph_of(np.full(size, 90, dtype=np.uint8)))
    assert len(features) == 0
    assert features.descriptors.shape == (0, 64)
    assert features.image_size == size[::-1]


def test_padding_leaves_no_keypoints_and_suppresses_none() -> None:
    """A bright border repeats in the padding; maxima beside it must be found all the same."""
    pixels = dots(40, 40, (38, 10), (10, 38), (38, 38), (39, 20), (20, 39))
    features = extract(extractor(nms_radius=2), photograph_of(pixels))
    assert sorted(map(tuple, features.keypoints.round().astype(int))) == [(10, 38), (38, 10), (38, 38)]


def test_the_network_is_told_the_statistics_of_the_unpadded_image() -> None:
    told: list[torch.Tensor] = []

    class Listening(Peaks):
        def forward(self, image: torch.Tensor, statistics: torch.Tensor | None = None) -> DenseMaps:
            assert statistics is not None
            told.append(statistics)
            return super().forward(image, statistics)

    pixels = drawn()[:50, :50, 0]
    extract(extractor(Listening()), photograph_of(pixels))
    torch.testing.assert_close(told[0], torch.tensor([[pixels.mean() / 255, pixels.std() / 255]]).float())


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("size", [(64, 64), (32, 128), (50, 59)])
def test_small_images_of_a_batch_have_what_each_has_alone(size: tuple[int, int], precision: str) -> None:
    one = Extractor(load_network(packaged_weights()), DetectionSettings(), device=CPU, precision=precision)
    pixels = np.random.default_rng(0).integers(0, 256, (16, *size), np.uint8)
    images = [one.prepare(photograph_of(cv2.GaussianBlur(noise, (0, 0), 1.5))) for noise in pixels]
    for start in range(0, len(images), 8):
        batch = images[start : start + 8]
        for together, image in zip(one.extract(batch), batch, strict=True):
            alone = one.extract([image])[0]
            np.testing.assert_equal(vars(together), vars(alone))


def test_a_batch_gives_what_each_image_gives_alone() -> None:
    one = extractor(untrained(), threshold=0, max_keypoints=100)
    images = [one.prepare(photograph_of(drawn(seed=seed)[..., 0])) for seed in range(3)]
    assert len({one.padded_sizes(image) for image in images}) == 1
    for together, image in zip(one.extract(images), images, strict=True):
        alone = one.extract([image])[0]
        np.testing.assert_allclose(together.keypoints, alone.keypoints, atol=1e-3)
        np.testing.assert_allclose(together.descriptors, alone.descriptors, atol=1e-5)


def test_narrow_images_that_share_a_batch_do_so_at_each_turn() -> None:
    """Those narrower than the fewest columns are padded to these: a quarter turn makes rows of them."""
    one = extractor(untrained(), threshold=0, max_keypoints=100, rotations=True)
    images = [one.prepare(photograph_of(drawn(70, width)[..., 0])) for width in (30, 40)]
    assert len({one.padded_sizes(image) for image in images}) == 1
    for together, image in zip(one.extract(images), images, strict=True):
        np.testing.assert_allclose(together.keypoints, one.extract([image])[0].keypoints, atol=1e-3)


@pytest.mark.parametrize("options", [{}, {"rotations": True}, {"scales": (1.0, 0.5), "max_keypoints": 0}])
def test_a_gpu_finds_at_once_what_a_cpu_finds_one_by_one(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = extractor(untrained(), threshold=0, **{"max_keypoints": 100} | options)
    photographs = [photograph_of(drawn(seed=seed)[..., 0]) for seed in range(3)]
    narrower = np.ascontiguousarray(photographs[0].pixels[:, :-3])
    photographs.append(photograph_of(narrower))  # padded to the same size
    photographs.append(photograph_of(np.full_like(photographs[0].pixels, 99)))
    masks = [None, np.random.default_rng(0).random(photographs[1].pixels.shape) < 0.5, None, None, None]
    images = [one.prepare(photograph, mask) for photograph, mask in zip(photographs, masks, strict=True)]
    assert len({one.padded_sizes(image) for image in images}) == 1
    by_one = one.extract(images)
    monkeypatch.setattr(one, "_waits_for_launches", True)
    for together, alone in zip(one.extract(images), by_one, strict=True):
        np.testing.assert_array_equal(together.keypoints, alone.keypoints)
        np.testing.assert_allclose(together.scores, alone.scores, rtol=1e-6)
        np.testing.assert_allclose(together.descriptors, alone.descriptors, atol=1e-6)
        np.testing.assert_array_equal(together.scales, alone.scales)
        if alone.turned is not None:
            np.testing.assert_allclose(together.turned, alone.turned, atol=1e-6)
    assert len(by_one[0]) > 50
    assert len(by_one[-1]) == 0


@pytest.mark.skipif(not torch.amp.is_autocast_available("mps"), reason="needs a torch that knows autocast there")
def test_threads_take_turns_on_an_apple_gpu() -> None:
    held = []

    class Watched(Peaks):
        def layers(self, pixels: torch.Tensor) -> DenseMaps:
            held.append(APPLE_GPU.locked())
            return super().layers(pixels)

    photograph = photograph_of(dots(64, 64, (20, 30)))
    for device, alone in (("mps", True), ("cpu", False)):
        one = Extractor(Watched(), DetectionSettings(), device=torch.device(device), images=1)
        one.device = CPU  # a pretended GPU
        assert len(one.extract([one.prepare(photograph)])[0]) == 1
        assert held.pop() == alone
        assert not APPLE_GPU.locked()


def test_masked_pixels_have_no_keypoints_and_the_others_keep_theirs() -> None:
    pixels = dots(60, 60, (10, 10), (40, 10), (10, 40))
    mask = np.ones((60, 60), dtype=bool)
    mask[:, 30:] = False
    features = extract(extractor(), photograph_of(pixels), mask)
    assert sorted(map(tuple, features.keypoints.round().astype(int))) == [(10, 10), (10, 40)]


def test_no_keypoint_rounds_into_a_mask_even_where_the_photograph_was_shrunk() -> None:
    pixels, random = drawn(240, 320)[..., 0], np.random.default_rng(0)
    mask = random.random((240, 320)) < 0.5
    features = extract(extractor(untrained(), threshold=0, max_size=200, nms_radius=1), photograph_of(pixels), mask)
    x, y = features.keypoints.round().astype(int).T
    assert len(x) > 50
    assert mask[y, x].all()


def sorted_by_place(features: StoredFeatures) -> list[np.ndarray]:
    """Keypoints and descriptors, also those at other turns if there are any."""
    order = np.lexsort(features.keypoints.T)
    turned = [] if features.turned is None else [features.turned[:, order]]
    return [features.keypoints[order], features.descriptors[order], *turned]


def assert_tiles_change_nothing(network: DenseNetwork, pixels: np.ndarray, tile: int = 1024, **options: Any) -> None:
    options |= {"threshold": 0, "max_keypoints": 0, "max_size": 0}
    whole, tiled = (extract(extractor(network, tile=edge, **options), photograph_of(pixels)) for edge in (0, tile))
    assert len(whole) == len(tiled) > 500
    for one, other in zip(sorted_by_place(tiled), sorted_by_place(whole), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_tiles_give_the_keypoints_of_the_whole_image(name: str) -> None:
    """Three tiles side by side; with a random network every path through it matters."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    pixels = drawn(104, 1544)[..., 0]
    pixels[:, 600:] //= 2  # tiles of different brightness: the statistics must be the whole image's
    assert_tiles_change_nothing(network, pixels)


@pytest.mark.parametrize("turns", range(4))
def test_with_rotations_a_photograph_has_the_same_keypoints_however_it_lies(turns: int) -> None:
    """Sides that are no multiples of the stride, so that turned ones are padded elsewhere."""
    one = extractor(untrained(), threshold=0, max_keypoints=150, rotations=True)
    pixels = drawn(75, 110)[..., 0]
    turned = np.ascontiguousarray(np.rot90(pixels, turns))
    there, here = extract(one, photograph_of(turned)), extract(one, photograph_of(pixels))
    assert len(here) == 150
    expected = here.keypoints
    for width in (110, 75, 110)[:turns]:
        expected = np.stack((expected[:, 1], width - 1 - expected[:, 0]), axis=1)
    np.testing.assert_allclose(there.keypoints, expected, atol=0.01)
    assert here.turned is not None
    assert there.turned is not None
    views, others = np.stack([here.descriptors, *here.turned]), np.stack([there.descriptors, *there.turned])
    np.testing.assert_allclose(others, np.roll(views, -turns, axis=0), atol=1e-3)


def test_turned_descriptors_are_those_of_the_turned_pixels() -> None:
    """`Peaks` describes a place by its column and row: at a turn these are the turned image's."""
    features = extract(extractor(rotations=True), photograph_of(dots(50, 70, (3, 4))))
    assert features.turned is not None
    views = np.stack([features.descriptors, *features.turned])[:, 0]
    columns_and_rows = views[:, :2] / views[:, 2:] * 1000
    np.testing.assert_allclose(columns_and_rows, [[3, 4], [4, 66], [66, 45], [45, 3]], atol=0.01)
    assert extract(extractor(), photograph_of(dots(50, 70, (3, 4)))).turned is None


def test_keypoints_of_another_scale_are_in_the_pixels_of_the_photograph() -> None:
    """A block of 2x2 is one pixel at half the size, whose centre is the block's; a single pixel is only grey there."""
    pixels = dots(64, 96, (20, 10))
    pixels[40:42, 60:62] = 250
    half = extract(extractor(scales=(0.5,), nms_radius=1), photograph_of(pixels))
    np.testing.assert_allclose(half.keypoints, [[60.5, 40.5]], atol=1e-4)
    np.testing.assert_allclose(half.scales, [2])


def test_a_keypoint_of_half_the_size_loses_half_a_logit_and_both_stay() -> None:
    pixels = dots(64, 96)
    pixels[40:42, 60:62] = 160  # logit 20 * 160 / 255 - 10 at either size
    both = extract(extractor(scales=(1.0, 0.5), nms_radius=1), photograph_of(pixels))
    logits = np.log(both.scores / (1 - both.scores))
    np.testing.assert_allclose(logits, [20 * 160 / 255 - 10, 20 * 160 / 255 - 10.5], atol=1e-3)
    assert both.scales is not None
    assert both.scales.tolist() == [1, 2]


def test_the_network_says_at_which_sizes_it_sees_an_image() -> None:
    class Twice(Peaks):
        default_scales = (1.0, 0.5)

    pixels = dots(64, 96)
    pixels[40:42, 60:62] = 250
    own, given = (extract(extractor(Twice(), **one), photograph_of(pixels)) for one in ({}, {"scales": (1.0,)}))
    assert own.scales is not None
    assert given.scales is not None
    assert set(own.scales) == {1, 2}
    assert set(given.scales) == {1}


def test_all_scales_together_keep_to_the_number_and_the_mask() -> None:
    pixels, mask = drawn(150, 200)[..., 0], np.ones((150, 200), dtype=bool)
    mask[:, 90:] = False
    network = untrained()
    with torch.no_grad():
        network.get_parameter("detector.weight").mul_(100)  # scores that differ by more than a scale costs
    one = extractor(network, threshold=0, max_keypoints=80, scales=(1.5, 1.0, 0.6))
    features = extract(one, photograph_of(pixels), mask)
    assert len(features) == 80
    assert len(set(features.scales)) == 3
    x, y = features.keypoints.round().astype(int).T
    assert mask[y, x].all()


@pytest.mark.parametrize("orientation", [3, 6])
def test_scales_and_rotations_are_in_the_grid_of_the_file_too(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "turned.png"
    path.write_bytes(encoded(dots(50, 70, (3, 4), (60, 20)), "PNG", orientation=orientation))
    stored = cv2.imdecode(np.fromfile(path, dtype=np.uint8), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)
    features = extract(extractor(scales=(1.0, 0.5), rotations=True), read_image(path))
    y, x = np.nonzero(stored)
    assert sorted(map(tuple, features.keypoints.round().astype(int))) == sorted(zip(x, y, strict=True))


def test_tiles_give_the_keypoints_of_the_whole_image_at_every_turn_and_scale() -> None:
    assert_tiles_change_nothing(untrained(), drawn(70, 1544)[..., 0], scales=(1.0, 0.7), rotations=True)


def test_tiles_of_any_edge_begin_on_the_networks_grid() -> None:
    assert_tiles_change_nothing(untrained(), drawn(70, 1544)[..., 0], tile=1101)


@pytest.mark.parametrize("shape", [(40, 2000), (2000, 40), (1100, 1100)])
def test_no_more_than_a_tile_goes_through_the_network(shape: tuple[int, int]) -> None:
    seen: list[int] = []

    class Listening(Peaks):
        def layers(self, pixels: torch.Tensor) -> DenseMaps:
            seen.append(max(pixels.shape[-2:]))
            return super().layers(pixels)

    features = extract(extractor(Listening(), tile=1024, max_size=0), photograph_of(dots(*shape, (7, 7))))
    np.testing.assert_allclose(features.keypoints, [[7, 7]], atol=1e-4)
    assert len(seen) > 1
    assert max(seen) <= 1024


def test_the_best_of_all_tiles_are_kept_best_first() -> None:
    xy = [(x, 20) for x in range(10, 2000, 60)]
    pixels = dots(40, 2000, *xy)
    for rank, (x, y) in enumerate(xy):
        pixels[y, x] = 160 + (rank * 7) % 90
    whole = extract(extractor(tile=0, max_size=0, max_keypoints=9), photograph_of(pixels))
    tiled = extract(extractor(tile=1024, max_size=0, max_keypoints=9), photograph_of(pixels))
    np.testing.assert_array_equal(tiled.keypoints, whole.keypoints)
    np.testing.assert_array_equal(tiled.scores, whole.scores)


def test_what_is_seen_where_a_tile_ends_takes_no_place_from_the_best() -> None:
    class Misled(Peaks):
        """A network to which the last of its pixels look like keypoints, as it doesn't know what comes after them."""

        def layers(self, pixels: torch.Tensor) -> DenseMaps:
            maps = super().layers(pixels)
            maps.score_logits[:, 10:40:10, -3] = 20  # of the whole image these are padding
            return maps

    pixels = dots(40, 1500, *((x, 20) for x in range(100, 500, 100)))
    for tile in (0, 1024):
        one = extractor(Misled(), tile=tile, max_size=0, max_keypoints=3)
        np.testing.assert_allclose(extract(one, photograph_of(pixels)).keypoints, [[100, 20], [200, 20], [300, 20]])


def test_no_keypoint_is_doubled_or_lost_at_a_seam() -> None:
    """White dots and a white plateau all along a row, the seam at 512 among them."""
    pixels = dots(40, 1500, *((x, 20) for x in range(497, 530, 5)))
    pixels[30, 490:540] = 255
    whole = extract(extractor(tile=0, max_size=0, nms_radius=4), photograph_of(pixels))
    tiled = extract(extractor(tile=1024, max_size=0, nms_radius=4), photograph_of(pixels))
    assert len(tiled) == len(whole)
    np.testing.assert_allclose(sorted_by_place(tiled)[0], sorted_by_place(whole)[0], atol=1e-4)


def test_masks_hold_in_tiles() -> None:
    pixels = dots(40, 1500, (100, 20), (700, 20), (1400, 20))
    mask = np.ones((40, 1500), dtype=bool)
    mask[:, 600:800] = False
    features = extract(extractor(tile=1024, max_size=0), photograph_of(pixels), mask)
    assert sorted(features.keypoints[:, 0].round()) == [100, 1400]


@pytest.mark.parametrize("name", NETWORKS)
def test_no_network_looks_further_than_tiles_overlap(name: str) -> None:
    """A change at one pixel changes nothing REACH pixels away."""
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    image = torch.rand(1, 1, 32, 1024)
    changed = image.clone()
    changed[..., 512] += 5
    statistics = torch.tensor([[0.5, 0.3]])
    with torch.inference_mode():
        before, after = network(image, statistics), network(changed, statistics)
    for one, other in zip(
        (before.score_logits, *before.descriptor_maps), (after.score_logits, *after.descriptor_maps), strict=True
    ):
        cell = 1024 // one.shape[-1]
        different = (one != other).flatten(0, -2).any(dim=0).nonzero()[:, 0] * cell
        assert len(different) > 0
        assert different.min() >= 512 - REACH + cell  # a descriptor is read between two cells
        assert different.max() < 512 + REACH - 2 * cell
    assert network.stride <= REACH
    assert REACH % network.stride == 0
    assert name in TILE_PIXELS


def test_too_little_memory_for_a_batch_is_met_by_single_images() -> None:
    calls: list[int] = []

    class Hungry(Peaks):
        def forward(self, image: torch.Tensor, statistics: torch.Tensor | None = None) -> DenseMaps:
            calls.append(len(image))
            if len(image) > 1:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return super().forward(image, statistics)

    one = extractor(Hungry())
    images = [one.prepare(photograph_of(dots(200, 200, (index, 9)))) for index in (3, 20)]
    assert [features.keypoints.round().tolist() for features in one.extract(images)] == [[[3, 9]], [[20, 9]]]
    assert calls == [2, 1, 1]


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("can't allocate memory"),
        RuntimeError("Invalid buffer size: 12.50 GiB"),  # on an Apple GPU
        RuntimeError("in the TorchScript interpreter.\nRuntimeError: could not create a primitive\n"),
        MemoryError(),  # which has no text
    ],
)
def test_too_little_memory_for_one_image_is_an_error_of_that_image(error: Exception) -> None:
    class Insatiable(Peaks):
        def forward(self, image: torch.Tensor, statistics: torch.Tensor | None = None) -> DenseMaps:
            raise error

    with pytest.raises(ImageError, match=r"too little memory on cpu.*--tile"):
        extract(extractor(Insatiable()), photograph_of(dots(32, 32, (3, 3))))


def test_other_errors_of_a_network_are_no_lack_of_memory() -> None:
    class Broken(Peaks):
        def forward(self, image: torch.Tensor, statistics: torch.Tensor | None = None) -> DenseMaps:
            raise RuntimeError("sizes differ")

    with pytest.raises(RuntimeError, match="sizes differ"):
        extract(extractor(Broken()), photograph_of(dots(32, 32, (3, 3))))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: extractor(max_size=-1), "--max-size -1"),
        (lambda: extractor(tile=1023), "--tile 1023: give 0"),
        (lambda: extractor(scales=()), "--scales"),
        (lambda: extractor(scales=(1.0, 0.0)), "--scales 1,0: give auto"),
        (lambda: extractor(scales=(8.0,)), "--scales 8"),
        (lambda: extractor(scales=(float("nan"),)), "--scales nan"),
    ],
)
def test_options_that_make_no_sense_are_refused(make: Callable[[], Extractor], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("size", [(400, 60), (60, 400), (1200, 65), (160, 20)])
def test_what_freed_memory_holds_changes_nothing(size: tuple[int, int], precision: str) -> None:
    extractor = Extractor(
        load_network(packaged_weights()),
        DetectionSettings(),
        device=CPU,
        precision=precision,
        views=ViewSettings(rotations=True),
    )
    prepared = extractor.prepare(photograph_of(np.random.default_rng(0).integers(0, 256, size, np.uint8)))
    first = extractor.extract([prepared])[0]
    for _ in range(3):
        del_me = [torch.full((count,), torch.nan) for count in (1_000, 10_000, 30_000, 100_000, 1_000_000)]
        del del_me
        again = extractor.extract([prepared])[0]
        np.testing.assert_equal(vars(again), vars(first))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_callers_autocast_changes_nothing(precision: str, dtype: torch.dtype) -> None:
    network = load_network(packaged_weights())
    extractor = Extractor(network, DetectionSettings(), device=CPU, precision=precision)
    prepared = extractor.prepare(photograph_of(drawn()))
    plain = extractor.extract([prepared])[0]
    with torch.autocast("cpu", dtype):
        cast = extractor.extract([prepared])[0]
    np.testing.assert_equal(vars(cast), vars(plain))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_callers_default_type_changes_nothing(precision: str) -> None:
    network, found = load_network(packaged_weights()), []
    for default in (torch.float32, torch.float64, torch.bfloat16):
        torch.set_default_dtype(default)
        try:
            extractor = Extractor(network, DetectionSettings(), device=CPU, precision=precision)
            found.append(extractor.extract([extractor.prepare(photograph_of(drawn()))])[0])
        finally:
            torch.set_default_dtype(torch.float32)
    for other in found[1:]:
        np.testing.assert_equal(vars(other), vars(found[0]))


def test_the_published_network_is_never_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sekd_cli.networks.precision.has_fast_bytes", lambda device: True)
    network = PublishedNetwork()
    assert Extractor(network, DetectionSettings(), device=CPU, precision="auto").precision != "int8"
    with pytest.raises(UsageError, match="--precision int8"):
        Extractor(network, DetectionSettings(), device=CPU, precision="int8")
