"""Two processes that train one network, by gloo on the CPU, against one process with the whole batch."""

import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing
from drawn import cached_photographs

from sekd_cli.errors import UsageError
from sekd_cli.training import ranks
from sekd_cli.training.photographs import Photographs
from sekd_cli.training.self_evolution import Reporter, SelfEvolution
from sekd_cli.training.settings import PRESETS, TrainingSettings, settings_from

SMALL = {
    "rounds": 1,
    "last_steps": 3,
    "batch_size": 4,
    "height": 64,
    "width": 64,
    "labels_per_photograph": 40,
    "detected_points": 24,
    "adaptation_references": 2,
    "reliability_references": 2,
    "adaptation_threshold": 0.01,
    "validation_share": 0.15,
    "photographs_per_round": 1.0,
    "warmup_steps": 50,  # small steps: what differs is rounding, and it grows with every step
}
OWN = {
    "own_keypoints": 20,
    "ranking_weight": 0.1,
    "position_weight": 0.1,
    "matching_weight": 0.1,
    "selection_weight": 0.1,
    "random_points": 8,
}
SETTINGS = {
    "compact": settings_from(SMALL | OWN, PRESETS["default"], "test"),
    "published": settings_from(
        SMALL | {"rounds": 2, "steps_per_update": 1, "photographs_per_round": 0.5}, PRESETS["paper"], "test"
    ),
}


class Keeps(Reporter):
    def __init__(self) -> None:
        self.losses: list[dict[str, float]] = []

    def stepped(self, step: int, figures: dict[str, float]) -> None:
        del step
        self.losses.append(figures)


def evolve(folder: Path, cache: Path, settings: TrainingSettings) -> dict[str, Any]:
    """A whole run, in float32: bfloat16 would hide what the ranks do behind its rounding."""
    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    told = Keeps()
    exact = torch.autocast("cpu", enabled=False)
    with pytest.MonkeyPatch.context() as patch:
        for module in ("losses", "affine_adaptation", "validation"):
            patch.setattr(f"sekd_cli.training.{module}.mixed_precision", lambda device: exact)
        evolution = SelfEvolution(folder, Photographs(cache), settings, told, device=torch.device("cpu"), workers=0)
        evolution.run()
    return {"losses": told.losses, "network": evolution.learner.network.state_dict()}


def as_rank(rank: int, port: int, folder: Path, cache: Path) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks.join(torch.device("cpu"))
    parts = torch.arange(2.0).reshape(2, 1) + 2 * rank
    out = {
        "previous": ranks.previous(parts),
        "total": ranks.total(torch.tensor([1.0 + rank])),
        "agreed": ranks.agreed(5.0 + rank),
    }
    with pytest.raises(UsageError, match="batch_size 3"):
        ranks.check_shares(3)
    norm = torch.nn.BatchNorm2d(3, momentum=0.3)
    x = images()[2 * rank : 2 * rank + 2].requires_grad_()
    (ranks.shared(norm, torch.device("cpu"))(x) * weights()[2 * rank : 2 * rank + 2]).sum().backward()
    out |= {"norm": norm.state_dict(), "gradient": x.grad}
    for name, settings in SETTINGS.items():
        out[name] = evolve(folder / name, cache, settings)
    torch.save(out, folder / f"rank{rank}.pt")
    ranks.leave()


def images() -> torch.Tensor:
    return torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(0)) * 3 + 1


def weights() -> torch.Tensor:
    return torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    cached_photographs(folder, 7)
    return folder / "cache"


@pytest.fixture(scope="module")
def two(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks ended with."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(as_rank, (port, folder, cache), nprocs=2)
    return [{"folder": folder} | torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_sums_neighbours_and_clocks_go_round(two: list[dict[str, Any]]) -> None:
    assert [told["previous"].flatten().tolist() for told in two] == [[3, 0], [1, 2]]
    assert [told["total"].tolist() for told in two] == [[3], [3]]
    assert [told["agreed"] for told in two] == [5, 5]


def test_a_shared_batch_norm_is_the_one_of_the_whole_batch(two: list[dict[str, Any]]) -> None:
    norm = torch.nn.BatchNorm2d(3, momentum=0.3)
    x = images().requires_grad_()
    (norm(x) * weights()).sum().backward()
    for told in two:
        for name, value in norm.state_dict().items():
            torch.testing.assert_close(told["norm"][name], value)
    torch.testing.assert_close(torch.cat([told["gradient"] for told in two]), x.grad)


@pytest.mark.parametrize("name", list(SETTINGS))
def test_two_ranks_stay_identical_and_step_as_one_process_with_the_whole_batch(
    two: list[dict[str, Any]], cache: Path, tmp_path: Path, name: str
) -> None:
    one = evolve(tmp_path / "one", cache, SETTINGS[name])
    first, second = (told[name] for told in two)
    for key, value in first["network"].items():
        assert torch.equal(value, second["network"][key]), key
    for step in range(3):
        for key in one["losses"][step].keys() - {"waited", "seconds"}:
            expected = pytest.approx(one["losses"][step][key], rel=2e-3, abs=1e-6)
            assert first["losses"][step][key] == expected, (step, key)
    assert one["losses"][0]["points"] > 2
    labels = [np.load(folder / "labels-0.npy") for folder in (tmp_path / "one", two[0]["folder"] / name)]
    assert np.array_equal(*labels, equal_nan=True)
    assert np.isfinite(labels[0][:, 0]).all()
    assert not (two[0]["folder"] / name / "checkpoint.part").exists()
