"""A network in bytes says what it says in real numbers, to a step of each grid, and always the same."""

from collections.abc import Iterator

import pytest
import torch
from test_folding import unsettled
from torch import Tensor, nn

from sekd_cli.errors import InputFileError
from sekd_cli.geometry import upsample
from sekd_cli.networks import CompactNetwork, quantised_layers, quantising
from sekd_cli.networks.compact import MINIMUM_DEVIATION, image_statistics
from sekd_cli.networks.folding import fold_batch_norms
from sekd_cli.networks.inference import inference_network
from sekd_cli.networks.packing import pack, pack_fine_levels, packed_convolution
from sekd_cli.networks.precision import has_matrix_units, has_vnni, possible_precisions
from sekd_cli.networks.quantised_layers import (
    Grid,
    QuantisedConvolution,
    QuantisedEnlargeOnto,
    QuantisedFirst,
    QuantisedPair,
    QuantisedSmoothOnto,
    RealConvolution,
)
from sekd_cli.networks.quantising import quantise
from sekd_cli.networks.tracing import traced
from sekd_cli.networks.weights_file import load_network, packaged_weights

CPU = torch.device("cpu")
SOURCE, OTHERS, TARGET = Grid(0.02, 100), Grid(0.03, 20), Grid(0.05, 7)
POSITIVE = Grid(0.05, 0)  # where a ReLU is the end of the bytes
KINDS = ("matrix units", "VNNI", "neither", "neither, told")
needs_bytes = pytest.mark.skipif(
    "int8" not in possible_precisions(CPU, quantisable=True), reason="this CPU or torch has no convolutions of bytes"
)


@pytest.fixture(params=KINDS)
def cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Weights made for matrix units, for products that nothing is lost of, for pairs of them in 16 bits; laid out once
    for the first, and the last where it is known that there is nothing else.
    """
    kind: str = request.param
    if (kind == "matrix units" and not has_matrix_units()) or (kind == "VNNI" and not has_vnni()):
        pytest.skip(f"this CPU has no {kind}")
    layers = "sekd_cli.networks.quantised_layers"
    monkeypatch.setattr(f"{layers}.reads_weights_alike", lambda: kind in {"matrix units", "neither, told"})
    monkeypatch.setattr(f"{layers}.has_vnni", lambda: not kind.startswith("neither"))
    return kind


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def some_bytes(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)


def real(maps: Tensor, grid: Grid) -> Tensor:
    return grid.step * (maps.double() - grid.zero)


def on_grid(values: Tensor, grid: Grid) -> Tensor:
    return (values / grid.step + grid.zero).round().clamp(0, 255)


def rounded_weights(convolution: nn.Conv2d, made: QuantisedConvolution | RealConvolution) -> nn.Conv2d:
    """The convolution whose weights are whole numbers of steps as fine as can be, in float64."""
    largest = convolution.weight.detach().abs().amax((1, 2, 3))
    assert ((largest / 127 <= 1.0001 * made.steps) & (made.steps <= 2 * largest / 127)).all()
    steps = made.steps[:, None, None, None]
    convolution.weight.data = (convolution.weight.detach() / steps).round() * steps
    return convolution.double()


@pytest.mark.parametrize(("low", "high"), [(0.0, 3.0), (-2.0, 6.0), (-5.0, -1.0), (0.0, 0.0)])
def test_a_grid_holds_its_ends_and_zero_itself(low: float, high: float) -> None:
    grid = Grid.spanning(low, high)
    assert 0 <= grid.zero <= 255
    assert grid.step * (0 - grid.zero) == pytest.approx(low, abs=1.01 * grid.step)
    assert grid.step * (255 - grid.zero) >= high - 1.01 * grid.step
    assert grid.step == pytest.approx((max(high, 0) - min(low, 0)) / 255, rel=0.005) or low == high == 0


@needs_bytes
@pytest.mark.usefixtures("cpu")
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 1)])
@torch.inference_mode()
def test_a_convolution_of_bytes_by_hand(kernel: int, stride: int) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(8, 16, kernel, stride=stride, padding=kernel // 2)
    maps, other = some_bytes(2, 8, 12, 20), some_bytes(2, 16, 12 // stride, 20 // stride)
    made = QuantisedConvolution(plain, SOURCE, TARGET)
    in_reals = RealConvolution(plain, SOURCE)
    expected = rounded_weights(plain, made)(real(maps, SOURCE))
    total = expected + real(other, OTHERS)
    assert (made(maps).double() - on_grid(expected, TARGET)).abs().max() <= 1
    assert (made(maps).double() - on_grid(expected, TARGET)).abs().mean() < 0.01  # but for ties
    torch.testing.assert_close(in_reals(maps).double(), expected, atol=1e-4, rtol=1e-5)
    assert (made.onto(maps, other.clone(), OTHERS).double() - on_grid(total, TARGET)).abs().max() <= 1


@needs_bytes
@pytest.mark.usefixtures("cpu")
@torch.inference_mode()
def test_weights_of_nothing_give_the_bias() -> None:
    plain = nn.Conv2d(4, 8, 3, padding=1)
    nn.init.zeros_(plain.weight[3])
    nn.init.constant_(plain.bias, 0.5)
    made = RealConvolution(plain, SOURCE)
    assert (made.steps > 0).all()
    found = made(some_bytes(1, 4, 6, 6))
    assert (found[:, 3] == 0.5).all()
    assert found.isfinite().all()


@needs_bytes
@pytest.mark.usefixtures("cpu")
@torch.inference_mode()
def test_what_weights_lose_of_the_mean_is_in_the_bias() -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 8, 3)
    mean = torch.rand(6) + 1
    maps = on_grid(mean.double()[:, None, None].expand(1, 6, 5, 5), SOURCE).byte()
    maps = maps.contiguous(memory_format=torch.channels_last)
    exact = plain(real(maps, SOURCE).float())
    error, without = ((RealConvolution(plain, SOURCE, given)(maps) - exact).abs().max() for given in (mean, None))
    assert error < 0.1 * without
    assert (QuantisedConvolution(plain, SOURCE, TARGET, mean).bias != plain.bias).any()


@needs_bytes
@torch.inference_mode()
def test_a_residual_pair_of_bytes() -> None:
    torch.manual_seed(0)
    first, second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
    maps = some_bytes(1, 8, 10, 14)
    between = Grid(0.02, 0)
    pair = QuantisedPair(
        QuantisedConvolution(first, SOURCE, between),
        QuantisedConvolution(second, between, POSITIVE),
    )
    x = real(maps, SOURCE)
    hidden = on_grid(rounded_weights(first, pair.first)(x).relu(), between)
    expected = on_grid((x + rounded_weights(second, pair.second)(real(hidden, between))).relu(), POSITIVE)
    assert (pair(maps.clone()).double() - expected).abs().max() <= 1


@needs_bytes
@pytest.mark.usefixtures("cpu")
@pytest.mark.parametrize("channels", [1, 3, 8, 32])
@pytest.mark.parametrize("sign", [-1, 1])
@torch.inference_mode()
def test_sums_of_the_largest_bytes_and_weights_are_whole(channels: int, sign: int) -> None:
    """Products of the largest numbers there are, of one sign: added up in 16 bits, a few would be too many."""
    torch.manual_seed(0)
    plain = nn.Conv2d(channels, 8, 3, padding=1)
    nn.init.constant_(plain.weight, sign)
    plain.weight.data[1, 1::2] = 0  # which two are added up first shows here, and here
    plain.weight.data[2, 1::4] = plain.weight.data[2, 2::4] = 0
    plain.weight.data[3:] *= torch.rand(5, channels, 3, 3) - 0.25
    nn.init.zeros_(plain.bias)
    made = RealConvolution(plain, Grid(1.0, 0))
    maps = torch.full((1, channels, 9, 11), 255, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    expected = rounded_weights(plain, made)(maps.double())
    torch.testing.assert_close(made(maps).double(), expected, rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("cpu", ["VNNI", "neither"], indirect=True)
def test_steps_are_as_fine_as_16_bits_let_them_be(cpu: str) -> None:
    plain = nn.Conv2d(4, 5, 1)
    weights = [[3, 0, 0, -3], [3, 3, 0, 0], [-3, -1, 0, 0], [3, -3, -2, 2], [0, 3, 3, 0]]
    plain.weight.data = torch.tensor(weights, dtype=torch.float32)[..., None, None]
    made = RealConvolution(plain, SOURCE)
    largest = torch.tensor([3.0] * 5 if cpu == "VNNI" else [3.0, 6.0, 4.0, 3.0, 3.0])
    torch.testing.assert_close(made.steps, largest / 127)


@needs_bytes
@pytest.mark.usefixtures("cpu")
@pytest.mark.parametrize(("height", "width"), [(5, 7), (1, 1), (1, 4), (6, 1)])
@pytest.mark.parametrize("channels", [8, 12, 32])
@torch.inference_mode()
def test_pixels_smoothed_onto_a_map_are_enlarged_without_loss(height: int, width: int, channels: int) -> None:
    torch.manual_seed(0)
    maps, finer = some_bytes(2, channels, height, width), some_bytes(2, channels, 2 * height, 2 * width)
    total = upsample(real(maps, SOURCE), 2) + real(finer, OTHERS)
    found = QuantisedSmoothOnto(channels, SOURCE, OTHERS, TARGET)(maps, finer.clone())
    error = (found.double() - on_grid(total, TARGET)).abs()
    tied = ((total / TARGET.step) % 1 - 0.5).abs() < 1e-3
    assert error[~tied].max() == 0
    assert error.max() <= 1


@needs_bytes
@pytest.mark.parametrize(("height", "width"), [(5, 7), (1, 1), (1, 4)])
@torch.inference_mode()
def test_enlargement_onto_a_map_of_bytes_repeats_the_border(height: int, width: int) -> None:
    torch.manual_seed(0)
    context = nn.Conv2d(8, 16, 1)
    maps, finer = some_bytes(2, 8, height, width), some_bytes(2, 16, 2 * height, 2 * width)
    whole = packed_convolution(lambda values: upsample(context(values), 2), 8, 1, 2, padding=0)
    onto = QuantisedEnlargeOnto(QuantisedConvolution(whole, SOURCE, TARGET), OTHERS)
    total = upsample(context(real(maps, SOURCE).float()), 2) + real(finer, OTHERS).float()
    error = onto(maps, finer).double() - on_grid(total, TARGET)
    assert error.abs().max() <= 1
    assert error.abs().mean() < 0.2


@needs_bytes
@pytest.mark.parametrize("contrast", [60.0, 3.0, 0.5])
@torch.inference_mode()
def test_pixels_are_normalised_by_the_grid_they_are_seen_on(contrast: float) -> None:
    torch.manual_seed(0)
    images = (100.7 + contrast * torch.randn(2, 1, 16, 24)).round().clamp(0, 255).byte()
    images[1] += 30
    images = images.contiguous(memory_format=torch.channels_last)
    statistics = image_statistics(images.float() / 255)
    plain = nn.Conv2d(16, 8, 3, padding=1)
    first = QuantisedFirst(4, QuantisedConvolution(plain, SOURCE, POSITIVE))
    made = first.convolution
    deviation = statistics[:, 1].clamp(min=MINIMUM_DEVIATION)[:, None, None, None]
    pixels = (images.double() / 255 - statistics[:, 0, None, None, None]) / deviation
    rounding = 0.5 / (255 * deviation.min()) * plain.weight.abs().sum((1, 2, 3)).max()  # of the mean to a byte
    expected = on_grid(rounded_weights(plain, made)(pack(pixels, 4)).relu(), POSITIVE)
    found = first(images, statistics, torch.float32)
    assert (found.double() - expected).abs().max() <= 1 + rounding / POSITIVE.step
    assert torch.equal(first((1 - 1e-6) * images.float() / 255, statistics, torch.float32), found)


@needs_bytes
@torch.inference_mode()
def test_a_mean_between_two_bytes_is_rounded() -> None:
    """One pixel in ten is white: of 0.1 the mean is 25.5 bytes, or a little more, which is 26."""
    image = torch.zeros(1, 1, 8, 8, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    plain = nn.Conv2d(16, 8, 1)
    nn.init.ones_(plain.weight)
    nn.init.zeros_(plain.bias)
    target = Grid(0.01, 255)
    found = QuantisedFirst(4, QuantisedConvolution(plain, SOURCE, target))(
        image, torch.tensor([[12.6 / 255, 1.5]]), torch.float32
    )
    assert (real(found, target) - 16 * -13 / 255 / 1.5).abs().max() < 0.02, "not -12"


@needs_bytes
@pytest.mark.usefixtures("cpu")
@pytest.mark.parametrize("shallow", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@torch.inference_mode()
def test_the_network_in_bytes_says_nearly_what_the_plain_one_says(
    photograph: Tensor, shallow: bool, packed: bool
) -> None:
    network = unsettled(CompactNetwork(shallow=shallow))
    for module in network.modules():  # contexts say nothing before training
        if isinstance(module, nn.Conv2d) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.1)
    network = fold_batch_norms(network)
    if packed:
        network = pack_fine_levels(network)
    before, made = network(photograph), quantise(network)
    assert torch.equal(network(photograph).score_logits, before.score_logits), "the network itself stays as it was"
    again = made(photograph)
    for one, other in zip(
        (again.score_logits, *again.descriptor_maps), (before.score_logits, *before.descriptor_maps), strict=True
    ):
        assert one.dtype == torch.float32
        assert (one - other).square().mean().sqrt() < 0.06 * other.std()
    assert made.dtype == torch.float32


@needs_bytes
@torch.inference_mode()
def test_what_weights_lose_of_the_mean_is_mended_throughout(
    photograph: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = fold_batch_norms(load_network(packaged_weights()))
    exact = network(photograph).descriptor_maps
    mended = quantise(network)(photograph).descriptor_maps
    monkeypatch.setattr(quantising._Quantiser, "_mean", lambda self, name: torch.zeros(self.maps[name].shape[1]))
    plain = quantise(network)(photograph).descriptor_maps
    for one, other, truth in zip(mended, plain, exact, strict=True):
        assert (one - truth).norm() < 0.95 * (other - truth).norm()


@needs_bytes
@pytest.mark.parametrize("vnni", [False, True])
def test_fine_levels_are_packed_where_products_cost_little(vnni: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sekd_cli.networks.inference.has_vnni", lambda: vnni)
    first = inference_network(CompactNetwork(), "int8", CPU).normalise
    assert isinstance(first, QuantisedFirst)
    assert first.factor == (4 if vnni else 1)


@needs_bytes
@torch.inference_mode()
def test_maps_of_bytes_depend_neither_on_the_batch_nor_on_the_recording(photograph: Tensor, one_thread: None) -> None:
    """On one thread; several may round another way, by the last digit of what is real."""
    del one_thread
    network = inference_network(unsettled(CompactNetwork()), "int8", CPU)
    images = torch.cat((photograph, 0.5 * photograph.flip(2), photograph.flip(3)))[..., :96, :128]
    images = (255 * images).byte().contiguous(memory_format=torch.channels_last)
    statistics = image_statistics(images.float() / 255)
    together = network(images, statistics)
    for index in range(3):
        alone = traced(network)(images[index : index + 1], statistics[index : index + 1])
        assert torch.equal(alone.score_logits[0], together.score_logits[index])
        for one, all_of_them in zip(alone.descriptor_maps, together.descriptor_maps, strict=True):
            assert torch.equal(one[0], all_of_them[index])


@needs_bytes
@torch.inference_mode()
def test_maps_of_the_released_network_depend_on_no_number_of_threads(photograph: Tensor, one_thread: None) -> None:
    del one_thread
    network = inference_network(load_network(packaged_weights()), "int8", CPU)
    image = (255 * photograph).byte().contiguous(memory_format=torch.channels_last)
    statistics = image_statistics(photograph)
    alone = network(image, statistics)
    torch.set_num_threads(2)
    both = network(image, statistics)
    assert torch.equal(alone.score_logits, both.score_logits)
    assert all(map(torch.equal, alone.descriptor_maps, both.descriptor_maps))


@needs_bytes
@pytest.mark.usefixtures("cpu")
@pytest.mark.parametrize("packed", [False, True])
@torch.inference_mode()
def test_no_map_is_written_over_that_is_read_again(
    packed: bool, photograph: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = fold_batch_norms(load_network(packaged_weights()))
    network = quantise(pack_fine_levels(network) if packed else network)
    image = photograph[..., :64, :96].contiguous(memory_format=torch.channels_last)
    found = network(image)
    onto, layers = quantised_layers.convolve_onto, "sekd_cli.networks.quantised_layers"
    monkeypatch.setattr(f"{layers}.recordable", lambda function: function)
    monkeypatch.setattr(f"{layers}.convolve_onto", lambda both, *others: onto([both[0], both[1].clone()], *others))
    kept = network(image)
    assert torch.equal(found.score_logits, kept.score_logits)
    assert all(map(torch.equal, found.descriptor_maps, kept.descriptor_maps))


def test_norms_must_be_folded_first() -> None:
    with pytest.raises(AssertionError, match="fold the norms"):
        quantise(CompactNetwork())


def test_weights_that_make_numbers_too_large_for_any_grid_are_told() -> None:
    network = fold_batch_norms(CompactNetwork().eval())
    convolutions = [part for part in network.modules() if isinstance(part, nn.Conv2d)]
    for convolution in convolutions[:4]:
        convolution.weight.data *= 1e15
    with pytest.raises(InputFileError, match="too large for float32"):
        quantise(network)
