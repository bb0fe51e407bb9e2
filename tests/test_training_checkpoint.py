"""What a run goes on from: there and back, damaged, and on a full disk."""

from pathlib import Path

import pytest
import torch
from full_disk import files_of_at_most

from sekd_cli.errors import InputFileError, OutputError
from sekd_cli.training.checkpoint import load_checkpoint, save_checkpoint


def test_a_checkpoint_comes_back_and_code_in_one_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"step": 3, "tensor": torch.arange(3)})
    assert load_checkpoint(path)["step"] == 3
    torch.save({"format": 1, "code": Path}, path)  # a pickled class: refused, not run
    with pytest.raises(InputFileError, match="damaged checkpoint"):
        load_checkpoint(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(InputFileError, match="damaged checkpoint"):
        load_checkpoint(path)
    torch.save({"format": 1}, path)
    with pytest.raises(InputFileError, match="another version of sekd"):
        load_checkpoint(path)
    with pytest.raises(InputFileError, match="no checkpoint"):
        load_checkpoint(tmp_path / "none.pt")


def test_a_checkpoint_on_a_full_disk_is_told_and_the_old_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"step": 3})
    with (
        files_of_at_most(1 << 16),
        pytest.raises(OutputError, match="larger than this file system or process may write"),
    ):
        save_checkpoint(path, {"step": 4, "tensor": torch.zeros(1 << 16)})
    assert load_checkpoint(path)["step"] == 3
    assert list(tmp_path.iterdir()) == [path]
