"""A run's log as TensorBoard events, where the extra `[tensorboard]` is installed; nothing otherwise."""

import warnings
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any


class Events:
    """Writes `tensorboard/` in the run folder: figures of steps and of validations, by the step of the whole run."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """Events of steps from `first_step` on, which a killed run may have written, are replaced."""
        self._writer: Any = None
        if find_spec("tensorboard") is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of what tensorboard imports
                from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - an extra

            with suppress(UnicodeEncodeError):  # it can't write below a folder whose name is no text: do without
                self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)

    def add(self, group: str, figures: dict[str, float], step: int) -> None:
        """Figures of a step, which TensorBoard shows under `group`."""
        if self._writer is not None:
            for name, value in figures.items():
                self._writer.add_scalar(f"{group}/{name}", value, step)

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()
