"""Packed maps hold the same numbers elsewhere, and a packed convolution makes of them what the plain one does."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from test_folding import unsettled
from torch import Tensor, nn

from sekd_cli.geometry import upsample
from sekd_cli.networks import CompactNetwork
from sekd_cli.networks.folding import fold_batch_norms
from sekd_cli.networks.packing import BorderRepeated, pack, pack_fine_levels, packed_convolution, unpack


@given(st.integers(1, 3), st.integers(1, 5), st.sampled_from([1, 2, 4]), st.integers(1, 4), st.integers(1, 4))
def test_packing_there_and_back_changes_nothing(
    batch: int, channels: int, factor: int, height: int, width: int
) -> None:
    maps = torch.randn(batch, channels, height * factor, width * factor)
    packed = pack(maps, factor)
    assert packed.shape == (batch, channels * factor**2, height, width)
    assert torch.equal(unpack(packed, factor), maps)


def test_a_cell_lies_in_the_channels_row_by_row() -> None:
    image = torch.tensor([[0.0, 1, 2, 3], [4, 5, 6, 7]])[None, None]
    assert pack(image, 2)[0, :, 0].T.tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 2, 8])  # rows of 4 to 64 bytes: some are moved as one number
def test_every_type_and_width_is_packed_alike(dtype: torch.dtype, channels: int) -> None:
    maps = torch.arange(channels * 64.0).reshape(1, channels, 8, 8).to(dtype)
    shuffled = F.pixel_unshuffle(maps, 4).reshape(1, channels, 16, 2, 2).transpose(1, 2).reshape(1, -1, 2, 2)
    assert torch.equal(pack(maps, 4), shuffled)


@pytest.mark.parametrize(("kernel", "stride", "factors"), [(3, 1, (2, 2)), (4, 2, (4, 2)), (3, 2, (2, 1))])
@torch.inference_mode()
def test_a_packed_convolution_is_the_same_up_to_the_border(kernel: int, stride: int, factors: tuple[int, int]) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(3, 5, kernel, stride=stride, padding=1)
    packed = packed_convolution(plain, 3, *factors)
    maps = torch.randn(2, 3, 16, 24)
    torch.testing.assert_close(unpack(packed(pack(maps, factors[0])), factors[1]), plain(maps))


@torch.inference_mode()
def test_enlargement_onto_a_map_is_a_convolution_of_one_whose_border_repeats() -> None:
    maps, finer = torch.randn(1, 3, 5, 7), torch.randn(1, 3, 10, 14)
    onto = BorderRepeated(packed_convolution(lambda values: upsample(values, 2), 3, 1, 2, padding=0))
    torch.testing.assert_close(unpack(onto(maps, pack(finer, 2)), 2), (finer + upsample(maps, 2)).relu())


@torch.inference_mode()
def test_the_packed_network_says_what_the_plain_one_says(photograph: Tensor) -> None:
    network = fold_batch_norms(unsettled(CompactNetwork()))
    plain, packed = network(photograph), pack_fine_levels(network)(photograph)
    torch.testing.assert_close(packed.score_map, plain.score_map, atol=1e-5, rtol=0)
    torch.testing.assert_close(packed.descriptor_maps, plain.descriptor_maps, atol=1e-4, rtol=1e-4)


def test_norms_must_be_folded_first() -> None:
    with pytest.raises(AssertionError, match="fold the norms"):
        pack_fine_levels(CompactNetwork())
