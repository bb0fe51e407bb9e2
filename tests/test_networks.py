import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sekd_cli.geometry import pixel_grid, sample_map
from sekd_cli.networks import NETWORKS, CompactNetwork, DenseMaps, DenseNetwork, PublishedNetwork
from sekd_cli.networks.compact import MINIMUM_DEVIATION, Normalise, image_statistics
from sekd_cli.networks.packing import NormaliseCells, pack
from sekd_cli.networks.published import Enlargement

EVERY_NETWORK = pytest.mark.parametrize("kind", NETWORKS.values(), ids=NETWORKS.keys())


def untrained(kind: type[DenseNetwork]) -> DenseNetwork:
    torch.manual_seed(0)
    return kind().eval()


def image(batch: int, height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(batch, 1, height, width, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def maps_of(network: DenseNetwork, images: Tensor, statistics: Tensor | None = None) -> DenseMaps:
    maps: DenseMaps = network(images, statistics)
    return maps


def test_the_published_network_has_the_published_number_of_parameters() -> None:
    assert PublishedNetwork().count_parameters() == 661_762


def test_an_enlargement_is_the_transposed_convolution_that_it_replaces() -> None:
    torch.manual_seed(0)
    shape = {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1, "groups": 4}
    ours, theirs = Enlargement(16, 8, **shape), nn.ConvTranspose2d(16, 8, **shape)
    theirs.load_state_dict(ours.state_dict())
    maps = torch.randn(2, 16, 5, 7)
    torch.testing.assert_close(ours(maps), theirs(maps))


def test_the_compact_network_computes_a_tenth_of_the_published_one() -> None:
    flops = []
    for kind in (CompactNetwork, PublishedNetwork):
        with FlopCounterMode(display=False) as counter:
            maps_of(untrained(kind), image(1, 64, 96))
        flops.append(counter.get_total_flops())
    assert 0 < flops[0] < flops[1] / 10


def test_residual_pairs_add_nothing_until_they_learn() -> None:
    shallow, deep = CompactNetwork(shallow=True).eval(), CompactNetwork().eval()
    deep.load_state_dict(shallow.state_dict(), strict=False)
    said = [maps_of(each, image(1, 64, 96)) for each in (shallow, deep)]
    assert torch.equal(said[0].score_logits, said[1].score_logits)
    assert all(map(torch.equal, said[0].descriptor_maps, said[1].descriptor_maps))


@EVERY_NETWORK
@pytest.mark.parametrize("size", [(32, 32), (64, 96), (96, 64)])
def test_maps_have_the_shapes_that_the_network_declares(kind: type[DenseNetwork], size: tuple[int, int]) -> None:
    network, (height, width) = untrained(kind), size
    maps = maps_of(network, image(2, height, width))
    assert maps.score_logits.shape == (2, height, width)
    assert sum(one.shape[1] for one in maps.descriptor_maps) == network.descriptor_dim
    for one in maps.descriptor_maps:
        assert height % one.shape[-2] == width % one.shape[-1] == 0
        assert height // one.shape[-2] == width // one.shape[-1]
    low_level_stride = {"compact": 2, "published": 1}[network.name]
    assert maps.low_level_map.shape[-2:] == (height // low_level_stride, width // low_level_stride)


@EVERY_NETWORK
def test_the_smallest_image_is_one_stride_wide(kind: type[DenseNetwork]) -> None:
    network = untrained(kind)
    maps = maps_of(network, image(1, network.stride, network.stride))
    assert maps.score_logits.shape == (1, network.stride, network.stride)


@EVERY_NETWORK
def test_scores_are_probabilities_and_descriptor_maps_join_at_the_finest(kind: type[DenseNetwork]) -> None:
    network = untrained(kind)
    maps = maps_of(network, image(1, 64, 96))
    assert maps.score_map.min() >= 0
    assert maps.score_map.max() <= 1
    finest = maps.descriptor_maps[-1]
    assert maps.descriptor_map.shape == (1, network.descriptor_dim, *finest.shape[-2:])
    assert torch.equal(maps.descriptor_map[:, -finest.shape[1] :], finest)


@EVERY_NETWORK
def test_an_image_in_a_batch_has_the_maps_it_has_alone(kind: type[DenseNetwork]) -> None:
    network, images = untrained(kind), image(3, 64, 96)
    together, alone = maps_of(network, images), maps_of(network, images[1:2])
    torch.testing.assert_close(together.score_logits[1:2], alone.score_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together.descriptor_map[1:2], alone.descriptor_map, rtol=1e-4, atol=1e-4)


@EVERY_NETWORK
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_an_even_image_has_finite_maps(kind: type[DenseNetwork], value: float) -> None:
    maps = maps_of(untrained(kind), torch.full((1, 1, 64, 64), value))
    assert maps.score_logits.isfinite().all()
    assert maps.descriptor_map.isfinite().all()


@EVERY_NETWORK
def test_the_maps_learn_from_their_image(kind: type[DenseNetwork]) -> None:
    network = untrained(kind).train()
    maps = network(image(2, 64, 64))
    (maps.score_logits.mean() + maps.descriptor_map.mean()).backward()
    learned = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert learned == {name for name, _ in network.named_parameters()}


@EVERY_NETWORK
def test_an_image_moved_by_the_stride_has_its_maps_moved_as_far(kind: type[DenseNetwork]) -> None:
    network, step = untrained(kind), 32
    whole = image(1, 64, 288)
    left, right = whole[..., : 288 - step], whole[..., step:]
    statistics = image_statistics(whole)
    of_left, of_right = maps_of(network, left, statistics), maps_of(network, right, statistics)
    middle = pixel_grid(64, 288 - step)[None]
    middle = middle[:, (middle[0, :, 0] > 120) & (middle[0, :, 0] < 136)]  # whose surroundings both images hold
    moved = middle - torch.tensor([step, 0])
    for here, there in zip(of_left.descriptor_maps, of_right.descriptor_maps, strict=True):
        scale = 256 / here.shape[-1]
        torch.testing.assert_close(
            sample_map(there, moved, map_scale=scale), sample_map(here, middle, map_scale=scale), rtol=1e-2, atol=1e-3
        )


def test_the_compact_network_sees_no_difference_between_a_bright_and_a_dark_image() -> None:
    network, dark = untrained(CompactNetwork), 0.1 + 0.2 * image(1, 64, 64)
    bright = 3 * dark + 0.1
    torch.testing.assert_close(
        maps_of(network, bright).score_logits, maps_of(network, dark).score_logits, rtol=1e-3, atol=1e-3
    )


def test_a_tile_normalised_by_the_photograph_differs_from_one_normalised_by_itself() -> None:
    network, photograph = untrained(CompactNetwork), image(1, 64, 128)
    photograph[..., 64:] *= 0.2
    tile, statistics = photograph[..., :64], image_statistics(photograph)
    by_photograph = maps_of(network, tile, statistics)
    assert not torch.allclose(by_photograph.score_logits, maps_of(network, tile).score_logits, atol=1e-3)
    by_itself = maps_of(network, tile, image_statistics(tile))
    assert torch.equal(by_itself.score_logits, maps_of(network, tile).score_logits)


def test_statistics_do_not_matter_to_the_published_network() -> None:
    network, images = untrained(PublishedNetwork), image(1, 32, 32)
    with_statistics = maps_of(network, images, torch.tensor([[0.1, 9.0]]))
    assert torch.equal(with_statistics.score_logits, maps_of(network, images).score_logits)


def test_image_statistics_are_mean_and_deviation_of_each_image() -> None:
    images = torch.tensor([[0.0, 1.0, 0.0, 1.0], [0.2, 0.2, 0.2, 0.2]]).reshape(2, 1, 2, 2)
    torch.testing.assert_close(image_statistics(images), torch.tensor([[0.5, 0.5], [0.2, 0.0]]))


def test_an_image_of_one_pixel_has_statistics() -> None:
    torch.testing.assert_close(image_statistics(torch.full((1, 1, 1, 1), 0.7)), torch.tensor([[0.7, 0.0]]))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_looked_up_where_they_would_be_computed(dtype: torch.dtype, packed: bool) -> None:
    pixels = torch.randint(0, 256, (2, 1, 32, 64), dtype=torch.uint8)
    statistics = torch.tensor([[0.5, 0.25], [0.1, 0.0]])  # an even image, too
    normalise = NormaliseCells(4) if packed else Normalise()
    expected = (pixels - 255 * statistics[:, :1, None, None]) * (
        1 / (255 * statistics[:, 1:, None, None].clamp(min=MINIMUM_DEVIATION))
    )
    expected = (pack(expected, 4) if packed else expected).to(dtype)
    found = normalise(pixels, statistics, dtype)
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=1e-6)


def test_the_published_network_extracts_as_its_authors_did() -> None:
    assert PublishedNetwork.default_nms_radius == 4
    assert PublishedNetwork.default_threshold == 0.4
    assert PublishedNetwork.default_scales == (1.0,)
