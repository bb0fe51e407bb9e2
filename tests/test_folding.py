import pytest
import torch
from torch import nn

from sekd_cli.networks import NETWORKS, CompactNetwork
from sekd_cli.networks.folding import fold_batch_norms


def unsettled(network: nn.Module) -> nn.Module:
    """The network with norms that have seen other data, as after training; in evaluation mode."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2)
    return network.eval()


@pytest.mark.parametrize("name", NETWORKS)
@torch.inference_mode()
def test_a_folded_network_says_the_same(name: str, photograph: torch.Tensor) -> None:
    network = unsettled(NETWORKS[name]())
    before, after = network(photograph), fold_batch_norms(network)(photograph)
    torch.testing.assert_close(after.score_map, before.score_map, atol=1e-5, rtol=0)
    torch.testing.assert_close(after.descriptor_maps, before.descriptor_maps, atol=1e-5, rtol=1e-5)


def test_no_norm_of_the_compact_network_is_left_and_the_original_keeps_its_own() -> None:
    network = CompactNetwork()
    folded = fold_batch_norms(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@torch.inference_mode()
def test_a_norm_by_hand() -> None:
    """y = 3 x + 1, normalised by mean 2, variance 4, then times 5 plus 6: 5 (3 x + 1 - 2) / 2 + 6 = 7.5 x + 3.5."""
    convolution, norm = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=0)
    convolution.weight.fill_(3)
    convolution.bias.fill_(1)
    norm.running_mean.fill_(2)
    norm.running_var.fill_(4)
    norm.weight.fill_(5)
    norm.bias.fill_(6)
    folded = fold_batch_norms(nn.Sequential(convolution, norm))
    assert folded[0].weight.item() == 7.5
    assert folded[0].bias.item() == 3.5
