"""One network being learned: its optimiser, the running mean of its weights, and what it starts from."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sekd_cli.errors import UsageError
from sekd_cli.networks import PublishedNetwork
from sekd_cli.networks.weights_file import save_network
from sekd_cli.training.optimisation import Learner
from sekd_cli.training.settings import PRESETS

DEFAULT = PRESETS["default"]


def test_the_optimiser_is_as_the_settings_say_and_gradients_are_clipped() -> None:
    learner = Learner(replace(DEFAULT, weight_decay=0.07, gradient_norm=0.5), torch.device("cpu"))
    assert learner.optimiser.param_groups[0]["weight_decay"] == 0.07
    learner.update(1e6 * next(learner.network.parameters()).sum())
    gradients = [parameter.grad for parameter in learner.network.parameters() if parameter.grad is not None]
    assert torch.cat([gradient.flatten() for gradient in gradients]).norm().item() == pytest.approx(0.5, rel=1e-3)
    assert learner.optimiser.param_groups[0]["lr"] < DEFAULT.learning_rate + 1e-9


@pytest.mark.parametrize(("step", "keep"), [(0, 1 / 11), (10**6, 0.9)])
def test_the_running_mean_follows_quickly_at_first(step: int, keep: float) -> None:
    learner = Learner(replace(DEFAULT, average_decay=0.9), torch.device("cpu"))
    name, parameter = next(iter(learner.network.named_parameters()))
    before = parameter.detach().clone()
    learner.step = step
    learner.update(parameter.sum())
    after = parameter.detach()
    torch.testing.assert_close(dict(learner.average.named_parameters())[name], keep * before + (1 - keep) * after)


def test_a_start_of_another_network_is_refused(tmp_path: Path) -> None:
    save_network(tmp_path / "p.safetensors", PublishedNetwork(), {})
    with pytest.raises(UsageError, match=r"p\.safetensors: weights of the published network, not of compact"):
        Learner(replace(DEFAULT, start=str(tmp_path / "p.safetensors")), torch.device("cpu"))
