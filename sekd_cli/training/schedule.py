"""What a run does when: its phases, and how much of its time each may take where time is short."""

from dataclasses import dataclass, replace

from sekd_cli.training.settings import TrainingSettings

LEAST_STEPS = 600  # of an update, before it pays to label anew
LABELLING_SHARE = 0.2  # of a round's time, at most
MEASURED_STEPS = 20  # after which the number of rounds is chosen


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One step of a round: "label" (what: how the labels are made) or "update" (what: which part learns)."""

    round: int
    action: str
    what: str
    steps: int = 0


def phases_of(settings: TrainingSettings) -> list[Phase]:
    """The whole run: in each round, steps A to D of the paper, or one labelling and one joint update."""
    phases: list[Phase] = []
    for index in range(settings.rounds):
        steps = settings.last_steps if index == settings.rounds - 1 else settings.steps_per_update
        relabels = index == 0 or settings.self_evolving
        later_labels = "reliability" if settings.alternate else "adaptation-reliability"
        if settings.alternate and index > 0:
            if relabels:
                phases.append(Phase(round=index, action="label", what="adaptation"))
            phases.append(Phase(round=index, action="update", what="descriptor", steps=settings.steps_per_update))
        if relabels:
            what = settings.first_labels if index == 0 else later_labels
            phases.append(Phase(round=index, action="label", what=what))
        what = "detector" if settings.alternate else "both"
        phases.append(Phase(round=index, action="update", what=what, steps=steps))
    return phases


def affordable(settings: TrainingSettings, seconds: float, step_seconds: float) -> TrainingSettings:
    """The settings with no more rounds than there is time for, at LEAST_STEPS steps each or as many as they have."""
    steps = (1 - LABELLING_SHARE) * seconds / step_seconds
    rounds = settings.rounds
    while rounds > 1 and steps < min(rounds * LEAST_STEPS, replace(settings, rounds=rounds).total_steps):
        rounds -= 1
    return replace(settings, rounds=rounds)


def share_of_time(phases: list[Phase], index: int) -> float:
    """What share of the time from its beginning to the end of the run a phase gets: updates share it by their steps.

    A labelling gets LABELLING_SHARE of what it has with the update that follows.
    """
    parts: list[float] = []
    for place, phase in enumerate(phases):
        if phase.action == "label":
            parts.append(LABELLING_SHARE * phases[place + 1].steps)
        else:
            labelled = phases[place - 1].action == "label"
            parts.append((1 - LABELLING_SHARE * labelled) * phase.steps)
    return parts[index] / sum(parts[index:])
