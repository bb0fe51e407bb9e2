"""The state of a training run on disk: everything that the next step depends on. Never unpickles code."""

import io
import os
from pathlib import Path
from typing import Any

import torch

from sekd_cli.errors import InputFileError
from sekd_cli.new_file import new_file

FORMAT = 2


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Replace the checkpoint in one move, so that a kill leaves either the old one or the new one.

    Raises OutputError if it can't be written.
    """
    content = io.BytesIO()  # as torch tells of a full disk in words of its own
    torch.save({"format": FORMAT, **state}, content)
    with new_file(path, overwrite=True) as part, part.open("wb") as stream:
        stream.write(content.getbuffer())
        stream.flush()
        os.fsync(stream.fileno())  # a power cut too


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state that `save_checkpoint` wrote; InputFileError if it is missing, damaged or of another format."""
    if not path.is_file():
        raise InputFileError(f"{path}: no checkpoint; give --resume the folder of a run that has begun")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        known = state["format"] == FORMAT
    except Exception as error:  # torch raises half a dozen kinds, and pickle more, for a file that is none of its own
        raise InputFileError(f"{path}: damaged checkpoint ({type(error).__name__}); start a new run") from error
    if not known:
        raise InputFileError(f"{path}: checkpoint of another version of sekd; go on with that version")
    return state
