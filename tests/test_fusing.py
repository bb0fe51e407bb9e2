"""A fused network says what the plain one says, whether it is recorded or not."""

import pytest
import torch
from test_folding import unsettled
from torch import Tensor, nn

from sekd_cli.networks import CompactNetwork
from sekd_cli.networks.compact import EnlargeOnto
from sekd_cli.networks.folding import fold_batch_norms
from sekd_cli.networks.fusing import FusedConvolution, FusedEnlargeOnto, FusedInTwoParts, can_fuse, fuse
from sekd_cli.networks.inference import inference_network
from sekd_cli.networks.packing import pack_fine_levels
from sekd_cli.networks.precision import has_matrix_units
from sekd_cli.networks.tracing import traced

CPU = torch.device("cpu")
PRECISIONS = [
    pytest.param(dtype, marks=pytest.mark.skipif(not can_fuse(dtype), reason="this CPU or torch has none of this type"))
    for dtype in (torch.float32, torch.bfloat16)
]


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("active", [False, True])
@pytest.mark.parametrize(("batch", "height", "width"), [(2, 5, 7), (1, 1, 1), (2, 1, 1), (1, 1, 2)])
@torch.inference_mode()
def test_a_fused_convolution_by_the_plain_one(
    dtype: torch.dtype, active: bool, batch: int, height: int, width: int
) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(8, 16, 3, stride=2, padding=1).to(dtype)
    maps = torch.randn(batch, 8, 2 * height, 2 * width).to(dtype).to(memory_format=torch.channels_last)
    fused, expected = FusedConvolution(plain, active=active), plain(maps.float().to(dtype)).float()
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 2e-2, "rtol": 1e-2}
    torch.testing.assert_close(fused(maps).float(), expected.relu() if active else expected, **tolerance)
    onto = torch.randn(batch, 16, height, width).to(dtype).to(memory_format=torch.channels_last)
    torch.testing.assert_close(fused.onto(maps, onto).float(), (expected + onto.float()).relu(), **tolerance)


@pytest.mark.skipif(not (can_fuse(torch.bfloat16) and has_matrix_units()), reason="this CPU has no matrix units")
@torch.inference_mode()
def test_a_convolution_in_two_parts_is_exact_far_beyond_bfloat16() -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(32, 16, 3, padding=1).bfloat16()
    maps = torch.randn(2, 32, 10, 14).bfloat16().to(memory_format=torch.channels_last)
    expected = plain.double()(maps.double())
    parts = FusedInTwoParts(plain.bfloat16())
    assert (parts.convolution(maps).double() - expected).abs().max() > 1e-3
    torch.testing.assert_close(parts(maps).double(), expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("dtype", PRECISIONS)
@torch.inference_mode()
def test_enlargement_onto_a_map_is_the_same_to_the_bit(dtype: torch.dtype) -> None:
    maps, finer = torch.randn(2, 32, 5, 7).to(dtype), torch.randn(2, 32, 10, 14).to(dtype)
    maps, finer = (one.contiguous(memory_format=torch.channels_last) for one in (maps, finer))
    assert torch.equal(FusedEnlargeOnto(32, dtype)(maps, finer), EnlargeOnto()(maps, finer))


@pytest.mark.skipif(not can_fuse(torch.float32), reason="this CPU or torch has none")
@pytest.mark.parametrize("shallow", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@torch.inference_mode()
def test_the_fused_network_says_what_the_plain_one_says(photograph: Tensor, shallow: bool, packed: bool) -> None:
    network = fold_batch_norms(unsettled(CompactNetwork(shallow=shallow)))
    if packed:
        network = pack_fine_levels(network)
    photograph = (255 * photograph).round().byte()
    before = network(photograph)
    fused = fuse(network)
    assert not any(isinstance(module, nn.ReLU) for module in fused.modules())
    fractions = photograph / 255
    statistics = torch.stack((fractions.mean((1, 2, 3)), fractions.std((1, 2, 3), correction=0)), dim=1)
    for after in (fused(photograph), traced(fused)(photograph, statistics)):
        torch.testing.assert_close(after.score_map, before.score_map, atol=1e-5, rtol=0)
        torch.testing.assert_close(after.descriptor_maps, before.descriptor_maps, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("can", [False, True])
def test_a_network_for_inference_is_fused_where_it_can_be(can: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sekd_cli.networks.inference.can_fuse", lambda dtype: can and can_fuse(dtype))
    network = CompactNetwork()
    ready = inference_network(network, "float32", CPU)
    fused = {type(module) for module in ready.modules()} & {FusedConvolution}
    assert bool(fused) == (can and can_fuse(torch.float32))
    assert ready.dtype == torch.float32
    assert not any(isinstance(module, FusedConvolution) for module in network.modules())


def test_norms_must_be_folded_first() -> None:
    with pytest.raises(AssertionError, match="fold the norms"):
        fuse(CompactNetwork())
