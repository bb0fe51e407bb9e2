"""A run as a page: `report.md` and `curves.png`, made of the log at any time."""

import logging
import math
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from sekd_cli.counting import counted
from sekd_cli.training.curves import Curve, Panel, draw_panels
from sekd_cli.training.pictures import save_picture
from sekd_cli.training.run_folder import RunFolder, write_whole
from sekd_cli.training.settings import PRESETS, TrainingSettings

NOT_LOSSES = ("action", "round", "what", "step", "learning_rate", "waited", "seconds", "skipped", "points", "run_step")
SHARES = ("repeatability", "mma_1", "mma_3", "mma_5", "homography_accuracy")
NAMES = {"mma_1": "right to 1 px", "mma_3": "right to 3 px", "mma_5": "right to 5 px"}
logger = logging.getLogger(__name__)

RECKONED = {  # figures of an action's entries that must be there
    "data": ("photographs", "megabytes"),
    "label": ("photographs",),
    "update": ("seconds", "waited"),
    "plan": ("rounds",),
}
MOST = 1e30  # of what can be drawn
Entries = list[dict[str, Any]]


def write_report(run: RunFolder) -> Path:
    """Write `report.md` with `curves.png` into the run folder, and return its path."""
    settings = run.settings()
    logged = run.entries()
    entries = [entry for entry in logged if _is_whole(entry)]
    if len(entries) < len(logged):
        lost = len(logged) - len(entries)
        logger.warning("%s: %s left out of the report", run.path / "log.jsonl", counted(lost, "damaged line"))
    steps = sorted((entry for entry in entries if entry["action"] == "update"), key=_run_step)
    validations = [entry for entry in entries if entry["action"] == "validation" and "score" in entry]
    parts = [f"# Training run `{run.path.resolve().name}`", _summary(steps, entries, settings)]
    if validations:
        parts += ["## Validation, on photographs never trained on", _validation_table(validations)]
    if steps:
        save_picture(run.path / "curves.png", draw_panels(panels(steps, validations, settings)))
        parts += ["## Curves", "![Curves of losses and other figures](curves.png)"]
    pictures = sorted((run.path / "pictures").glob("*.jpg"))
    if pictures:
        parts.append("## Pictures")
        parts += [f"### {one.stem.replace('-', ' ')}\n\n![{one.stem}](pictures/{one.name})" for one in pictures]
    changed = _changed(settings)
    if changed:
        parts += ["## Settings that differ from the default", "\n".join(f"- `{line}`" for line in changed)]
    report = run.path / "report.md"
    write_whole(report, "\n\n".join(parts) + "\n")
    return report


def _is_whole(entry: dict[str, Any]) -> bool:
    """Whether an entry of the log holds the figures that are reckoned with, and nothing but numbers beside its names.

    Another one was changed by hand or by another tool, or the disk is damaged.
    """
    figures = [value for name, value in entry.items() if name not in ("action", "what")]
    shown = (*SHARES, "localisation_error", "round", "what") if "score" in entry else ()
    return (
        all(type(value) in (int, float) and not MOST < abs(value) < math.inf for value in figures)
        and all(math.isfinite(entry.get(name, math.nan)) for name in RECKONED.get(str(entry["action"]), ()))
        and all(name in entry for name in shown)
        and type(entry.get("run_step", 0)) is int
    )


def panels(steps: Entries, validations: Entries, settings: TrainingSettings) -> list[Panel]:
    """Losses, validation if there was any, learning rate and speed over the steps of the whole run."""
    at = [float(_run_step(entry)) for entry in steps]
    names = [name for name in dict.fromkeys(key for entry in steps for key in entry) if name not in NOT_LOSSES]

    def over(key: str) -> Curve:
        parts = groupby(zip(at, steps, strict=True), lambda pair: pair[1].get(key) is not None)  # by update, mostly
        pairs = [[(x, entry[key]) for x, entry in part] for there, part in parts if there]
        return [([x for x, _ in part], [y for _, y in part]) for part in pairs]

    after = "update" if settings.alternate else "round"
    rounds = [float(index) for index in range(len(validations))]
    shares = {NAMES.get(key, key.replace("_", " ")): key for key in SHARES}
    measured = {name: [(rounds, [100 * entry[key] for entry in validations])] for name, key in shares.items()}
    speed = [settings.batch_size / max(entry["seconds"], 1e-9) for entry in steps]
    waited = [100 * entry["waited"] / max(entry["seconds"], 1e-9) for entry in steps]
    validation = Panel(title="Validation, %", x_label=after, curves=measured, dots=True)
    return [
        Panel(title="Losses", x_label="step", curves={name: over(name) for name in names}),
        *([validation] if validations else []),
        Panel(title="Learning rate", x_label="step", curves={"learning rate": over("learning_rate")}),
        Panel(
            title="Speed",
            x_label="step",
            curves={"pairs a second": [(at, speed)], "waiting for data, %": [(at, waited)]},
        ),
    ]


def _run_step(entry: dict[str, Any]) -> int:
    return int(entry.get("run_step", 0))


def _summary(steps: Entries, entries: Entries, settings: TrainingSettings) -> str:
    rows = [
        ("network", settings.network),
        ("steps", f"{len(steps):,} of {settings.batch_size} pairs of {settings.height}x{settings.width} pixels"),
    ]
    data = [entry for entry in entries if entry["action"] == "data"]
    if data:
        rows.append(("photographs", f"{data[-1]['photographs']:,} ({data[-1]['megabytes']:,.0f} MB decoded)"))
    labelled = [entry for entry in entries if entry["action"] == "label" and "labels" in entry and entry["photographs"]]
    if labelled:
        each = ", ".join(f"{entry['labels'] / entry['photographs']:.1f}" for entry in labelled)
        rows.append(("labels a photograph", each))
    seconds = sum(entry["seconds"] for entry in steps)
    if seconds:
        waited = sum(entry["waited"] for entry in steps)
        rows.append(
            ("time in steps", f"{seconds / 60:.1f} minutes, {100 * waited / seconds:.1f} % of it waiting for data")
        )
        rows.append(("speed", f"{len(steps) * settings.batch_size / seconds:.1f} image pairs a second"))
    skipped = sum(entry.get("skipped", 0) for entry in steps)
    if skipped:
        rows.append(("skipped", f"{counted(round(skipped), 'step')}, whose gradient wasn't finite"))
    planned = [entry for entry in entries if entry["action"] == "plan"]
    if planned:
        rows.append(("planned", f"{counted(planned[-1]['rounds'], 'round')} in {settings.minutes:g} min"))
    return "| | |\n| --- | --- |\n" + "\n".join(f"| {name} | {value} |" for name, value in rows)


def _validation_table(validations: Entries) -> str:
    head = "| after | repeatability | localisation error, px | matches right to 1 / 3 / 5 px | homography accuracy |\n"
    lines = []
    for entry in validations:
        percent = {key: f"{100 * entry[key]:.1f}" for key in SHARES}
        accuracy = " / ".join(percent[key] for key in ("mma_1", "mma_3", "mma_5"))
        lines.append(
            f"| round {entry['round']}, {entry['what']} | {percent['repeatability']} "
            f"| {entry['localisation_error']:.2f} | {accuracy} | {percent['homography_accuracy']} |"
        )
    return head + "| --- " * 5 + "|\n" + "\n".join(lines)


def _changed(settings: TrainingSettings) -> list[str]:
    default = asdict(PRESETS["default"])
    return [f"{name} = {value}" for name, value in asdict(settings).items() if value != default[name]]
