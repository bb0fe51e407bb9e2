"""Images with little on an even ground are told from others, and done in real numbers."""

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from sekd_cli import Sekd
from sekd_cli.networks import CompactNetwork, DenseMaps
from sekd_cli.networks.inference import dense_function
from sekd_cli.networks.precision import possible_precisions, resolve_precision
from sekd_cli.networks.sparse_images import BytesWhereTheySuit, is_sparse

CPU = torch.device("cpu")


def told_sparse(pixels: np.ndarray) -> bool:
    return is_sparse(pixels, pixels.mean() / 255, pixels.std() / 255)


def ground(share: float, grey: int, dots: int) -> np.ndarray:
    """An even page, but for a share of dots."""
    pixels = np.full((100, 100), grey, np.uint8)
    pixels.ravel()[: round(share * pixels.size)] = dots
    return pixels


def words() -> np.ndarray:
    page = np.full((192, 256), 255, np.uint8)
    cv2.putText(page, "a few words", (20, 100), cv2.FONT_HERSHEY_SIMPLEX, 1.0, 0, 2, cv2.LINE_AA)
    return page


@pytest.mark.parametrize(("grey", "dots"), [(255, 0), (0, 255), (100, 200), (200, 100)])
@pytest.mark.parametrize(("share", "sparse"), [(0.0, False), (0.004, False), (0.006, True), (0.04, True), (0.1, False)])
def test_a_few_pixels_far_from_the_mean_make_an_image_sparse(grey: int, dots: int, share: float, sparse: bool) -> None:
    assert told_sparse(ground(share, grey, dots)) is sparse


def test_even_images_and_those_of_all_greys_are_not_sparse(photograph: Tensor) -> None:
    assert not told_sparse(np.zeros((64, 64), np.uint8))
    assert not told_sparse((255 * photograph[0, 0]).byte().numpy())
    assert not told_sparse(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8))
    faint = ground(0.02, 100, 102)  # less than what counts as contrast
    assert not told_sparse(faint)


def test_each_image_of_a_batch_is_done_as_suits_it() -> None:
    made = []

    def says(value: float, height: int) -> object:
        def function(image: Tensor, statistics: Tensor) -> DenseMaps:
            assert len(image) == len(statistics)
            logits = image[:, 0].float() + value
            return DenseMaps(logits, (logits[:, None],), torch.zeros(len(image), 1, height, height))

        return function

    def make() -> object:
        made.append(1)
        return says(1000, 4)

    network = BytesWhereTheySuit(says(0, 2), make)
    plain, sparse = ground(0.3, 90, 140), ground(0.02, 90, 140)
    batch = torch.from_numpy(np.stack([plain, sparse, plain, sparse]))[:, None]
    statistics = torch.stack((batch.float().mean((1, 2, 3)), batch.float().std((1, 2, 3))), dim=1) / 255
    only = network(batch[::2], statistics[::2])
    assert not made
    assert only.low_level_map.numel()
    for _ in range(2):
        found = network(batch, statistics)
        added = torch.tensor([0.0, 1000.0, 0.0, 1000.0])[:, None, None]
        assert torch.equal(found.score_logits, batch[:, 0] + added)
        assert torch.equal(found.descriptor_maps[0], found.score_logits[:, None])
    assert made == [1]


@pytest.mark.skipif(
    "int8" not in possible_precisions(CPU, quantisable=True), reason="this CPU or torch has no convolutions of bytes"
)
def test_a_page_with_words_has_the_features_of_real_numbers() -> None:
    otherwise = resolve_precision("auto", CPU, quantisable=False)
    bytes_, exact = (
        Sekd.from_pretrained(device="cpu", precision=name).extract(words()) for name in ("int8", otherwise)
    )
    assert len(exact) > 30
    assert torch.equal(bytes_.keypoints, exact.keypoints)
    assert torch.equal(bytes_.descriptors, exact.descriptors)


def test_other_precisions_are_the_same_for_all_images() -> None:
    assert not isinstance(dense_function(CompactNetwork().eval(), "float32", CPU), BytesWhereTheySuit)
