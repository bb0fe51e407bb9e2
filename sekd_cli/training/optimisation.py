"""One network being learned: gradient steps, learning rate, and the running mean of its weights."""

import copy
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sekd_cli.errors import InputFileError, SekdError, UsageError
from sekd_cli.networks import NETWORKS, CompactNetwork, DenseNetwork
from sekd_cli.networks.weights_file import load_network
from sekd_cli.training.ranks import ranks, shared
from sekd_cli.training.settings import TrainingSettings

MOST_SKIPPED = 20  # steps in a row without a finite loss: the run is lost


def first_network(settings: TrainingSettings) -> DenseNetwork:
    """A random network, or that of an earlier run; what it lacks is there, but adds nothing yet.

    Raises InputFileError if the start can't be read, UsageError if it doesn't fit.
    """
    network = CompactNetwork(shallow=True) if settings.shallow else NETWORKS[settings.network]()
    if not settings.start:
        return network
    start = load_network(Path(settings.start))
    if start.name != settings.network:
        raise UsageError(f"{settings.start}: weights of the {start.name} network, not of {settings.network}")
    if network.load_state_dict(start.state_dict(), strict=False).unexpected_keys:
        raise UsageError(f"{settings.start}: deeper than the network that is to be trained; leave out shallow")
    return network


class Learner:
    """The network, its running mean and its optimiser."""

    def __init__(self, settings: TrainingSettings, device: torch.device) -> None:
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.network: DenseNetwork = first_network(settings).to(device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
        self.average = self.frozen_copy()
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.model = shared(self.network, device)  # what the losses call: on several ranks it adds up gradients
        self.step = 0
        self.skipped = 0
        self.annealed = 0.0  # how far the last update has come, in [0, 1]

    def learning_rate(self) -> float:
        """Warm-up, constant, and a half cosine down to zero in the last update."""
        settings = self.settings
        warm = min(1.0, (self.step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
        fall = 0.5 * (1 + math.cos(math.pi * min(1.0, self.annealed)))
        return settings.learning_rate * warm * fall

    def update(self, loss: Tensor) -> None:
        """One step down the gradient of `loss`; one that isn't finite is skipped.

        Raises SekdError if many are, or the statistics of batch norms aren't finite either, which no later step mends.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate()
        self.optimiser.zero_grad(set_to_none=True)
        whole = loss * ranks()  # torch takes the mean of the ranks' gradients, but their losses add up
        whole.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.gradient_norm)
        if bool(torch.isfinite(norm)):
            self.optimiser.step()
            self.skipped = 0
        else:
            self.skipped += 1
            lost = not all(bool(torch.isfinite(buffer).all()) for buffer in self.network.buffers())
            if lost or self.skipped > MOST_SKIPPED:
                raise SekdError(f"training diverged at step {self.step}; lower learning_rate and start again")
        self.step += 1
        self._average()

    @torch.no_grad()
    def _average(self) -> None:
        keep = min(self.settings.average_decay, self.step / (self.step + 10))
        for mean, value in zip(self.average.state_dict().values(), self.network.state_dict().values(), strict=True):
            if mean.dtype.is_floating_point:
                mean.lerp_(value, 1 - keep)
            else:
                mean.copy_(value)

    def frozen_copy(self) -> DenseNetwork:
        """The network as it is now, to hold what an update shouldn't change."""
        return copy.deepcopy(self.network).requires_grad_(False).eval()

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "skipped": self.skipped,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`. Raises InputFileError if it is of another network."""
        try:
            self.network.load_state_dict(state["network"])
            self.average.load_state_dict(state["average"])
        except RuntimeError as error:  # with the name of every tensor
            message = "the checkpoint is of another network than config.toml's; put it back as it was, or start anew"
            raise InputFileError(message) from error
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.skipped = int(state["step"]), int(state["skipped"])
