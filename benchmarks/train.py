"""Image pairs a second of training, and where the time goes: python benchmarks/train.py [PHOTOGRAPHS...].

For each network: milliseconds a pair of data (reading, warping, light), forward (network and losses), backward and
optimiser, and milliseconds a photograph of labelling by affine adaptation and reliability. "pairs/s" counts data and
step, one after the other, as on one core; "step alone" is what a core does that other processes bring the data; "with
labelling" spreads the default schedule's labelling over its pairs. On a CPU it is the process's own CPU time on one
thread, which other programs disturb little. PHOTOGRAPHS: folders or files; by default the examples.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import median_ms

from sekd_cli.device import keep_freed_memory, resolve_device
from sekd_cli.image_search import find_images
from sekd_cli.training.dataset import PairBatch, PairDataset, render
from sekd_cli.training.labelling import grey_of, label_photograph
from sekd_cli.training.losses import losses_of
from sekd_cli.training.optimisation import Learner
from sekd_cli.training.photographs import Photographs, cache_photographs
from sekd_cli.training.randomness import generator_of
from sekd_cli.training.settings import PRESETS, TrainingSettings

EXAMPLES = Path(__file__).parents[1] / "examples"
RELEASED_PHOTOGRAPHS = 3085  # of the released weights' run, without those held out: for the labelling's share


def measure(settings: TrainingSettings, photographs: Photographs, device: torch.device, times: int) -> dict[str, Any]:
    """Figures of one network."""
    chosen = np.arange(len(photographs))
    learner = Learner(settings, device)
    kind = "reliability" if settings.alternate else "adaptation-reliability"
    learner.network.eval()

    def label(index: int) -> np.ndarray:
        with torch.inference_mode():
            return label_photograph(grey_of(photographs[index]), kind, learner.average, settings, generator_of(index))

    turn = iter(range(10**9))
    labelling = median_ms(lambda: label(next(turn) % len(chosen)), max(3, times // 2), device)
    labels = np.full((len(chosen), settings.labels_per_photograph, 3), np.nan, np.float32)
    for row in range(len(chosen)):
        random = np.random.default_rng(row).random((settings.labels_per_photograph, 2))
        labels[row] = np.c_[random * (photographs.sizes[row] - 1), np.ones(len(random))]
    pairs = PairDataset(photographs, chosen, labels, settings, (0,))

    def batch() -> PairBatch:
        return render(pairs.plan(next(turn)), settings.height, settings.width, device)

    ready, learner.network = batch(), learner.network.train()
    part = "detector" if settings.alternate else "both"
    frozen = learner.frozen_copy() if settings.alternate else None

    def loss() -> torch.Tensor:
        return torch.stack(list(losses_of(learner.model, frozen, ready, part, settings).values())).sum()

    def optimise() -> None:
        torch.nn.utils.clip_grad_norm_(learner.network.parameters(), settings.gradient_norm)
        learner.optimiser.step()
        learner._average()

    data, forward = median_ms(batch, times, device), median_ms(loss, times, device)
    step = median_ms(lambda: learner.update(loss()), times, device)
    optimiser = median_ms(optimise, times, device)
    size = settings.batch_size
    figures = {"data": data, "forward": forward, "backward": step - forward - optimiser, "optimiser": optimiser}
    figures = {name: value / size for name, value in figures.items()}
    labelled = (settings.rounds - 1) * settings.photographs_per_round * RELEASED_PHOTOGRAPHS
    spread = labelling * labelled / (settings.total_steps * size)
    return {
        "network": settings.network,
        "batch": f"{size}x{settings.height}x{settings.width}",
        "ms_a_pair": figures,
        "labelling_ms_a_photograph": labelling,
        "pairs_a_second": 1e3 / sum(figures.values()),
        "pairs_a_second_step_alone": 1e3 * size / step,
        "pairs_a_second_with_labelling": 1e3 / (sum(figures.values()) + spread),
    }


def main() -> None:
    """Print a table, or --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", nargs="*", default=[str(EXAMPLES)])
    parser.add_argument("--network", choices=["compact", "published"], action="append")
    parser.add_argument("--height", type=int, default=256, help="a multiple of 32; 256x320 has 7 %% more than 240x320")
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--times", type=int, default=9)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    device = resolve_device(options.device)
    torch.set_num_threads(1)
    keep_freed_memory()
    shape = {"height": options.height, "width": options.width, "batch_size": options.batch_size}
    with tempfile.TemporaryDirectory() as folder:
        photographs = cache_photographs(find_images(options.photographs), Path(folder), 640)
        presets = {"compact": PRESETS["default"], "published": PRESETS["paper"]}
        rows = [
            measure(replace(presets[name], **shape), photographs, device, options.times)
            for name in options.network or list(presets)
        ]
    if options.json:
        print(json.dumps({"device": str(device), "rows": rows}))
        return
    head = ["network", "batch", "data", "forward", "backward", "optimiser", "labelling"]
    print("| " + " | ".join([*head, "pairs/s", "step alone", "with labelling"]) + " |")
    print("| --- " * 10 + "|")
    for row in rows:
        numbers = [f"{value:.1f}" for value in (*row["ms_a_pair"].values(), row["labelling_ms_a_photograph"])]
        speeds = [f"{row[f'pairs_a_second{part}']:.1f}" for part in ("", "_step_alone", "_with_labelling")]
        print("| " + " | ".join([row["network"], row["batch"], *numbers, *speeds]) + " |")


if __name__ == "__main__":
    main()
