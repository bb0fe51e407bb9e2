import errno
import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from sekd_cli.errors import InputFileError, OutputError
from sekd_cli.file_errors import error_number
from sekd_cli.new_file import new_file


def test_the_file_is_there_after_the_block_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with new_file(path, overwrite=False) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
        assert temporary.parent == path.parent  # the same disk, so that it can be moved in one step
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail_halfway() -> None:
        with new_file(path, overwrite=True) as temporary:
            temporary.write_text("half")
            raise InputFileError("damaged")

    with pytest.raises(InputFileError):
        fail_halfway()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_there_is_replaced_only_if_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OutputError, match=r"file: exists already; give --overwrite"), new_file(path, overwrite=False):
        raise AssertionError("never begun")
    with new_file(path, overwrite=True) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"


def test_a_place_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="its folder is a file"), new_file(tmp_path / "file" / "x", overwrite=False):
        raise AssertionError("never begun")
    with pytest.raises(OutputError, match="is a folder"), new_file(tmp_path, overwrite=True) as temporary:
        temporary.write_text("")


def test_a_full_disk_is_told_whoever_notices_it(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="the disk is full"), new_file(tmp_path / "file", overwrite=False):
        raise OSError(errno.ENOSPC, "No space left on device")
    told = "Unable to synchronously copy object (file write failed, errno = 28, error message = 'No space left')"
    with pytest.raises(OutputError, match="the disk is full"), new_file(tmp_path / "file", overwrite=False):
        raise RuntimeError(told)  # as HDF5 does
    with pytest.raises(RuntimeError, match="shapes"), new_file(tmp_path / "file", overwrite=False):
        raise RuntimeError("shapes differ")  # not about files


def test_what_processes_that_run_are_writing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, not_ours = os.kill, 1
    never = 2**22 + 1  # above Linux's largest
    parts = [tmp_path / f".file.{process}.part" for process in (os.getppid(), not_ours, never)]
    for part in parts:
        part.write_text("half")

    def kill(process: int, number: int) -> None:
        if process == not_ours:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        real(process, number)

    monkeypatch.setattr(os, "kill", kill)
    with new_file(tmp_path / "file", overwrite=False) as temporary:
        temporary.write_text("whole")
    assert [part.exists() for part in parts] == [True, True, False]


def test_the_number_of_an_error_is_found_in_words_too(tmp_path: Path) -> None:
    assert error_number(FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))) == errno.ENOENT
    assert error_number(RuntimeError("write failed (errno = 27)")) == errno.EFBIG
    assert error_number(ValueError("nothing")) is None
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = np.zeros(1000)
    damaged = (tmp_path / "x.h5").read_bytes()[:4000]
    (tmp_path / "x.h5").write_bytes(damaged)
    with pytest.raises(OSError, match="truncated") as caught:
        h5py.File(tmp_path / "x.h5")
    assert error_number(caught.value) is None  # damage, no failure of the system


def test_a_link_stays_one_and_no_device_is_replaced(tmp_path: Path) -> None:
    link, pipe = tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(tmp_path / "real")
    with new_file(link, overwrite=True) as temporary:
        temporary.write_text("new")
    assert link.is_symlink()
    assert (tmp_path / "real").read_text() == "new"
    os.mkfifo(pipe)
    for overwrite in (True, False):
        with pytest.raises(OutputError, match="no ordinary file"), new_file(pipe, overwrite=overwrite):
            pass


def test_a_pipe_behind_a_descriptor_is_no_ordinary_file() -> None:
    reading, writing = os.pipe()
    with pytest.raises(OutputError, match="no ordinary file"), new_file(Path(f"/dev/fd/{writing}"), overwrite=False):
        pass
    os.close(reading)
    os.close(writing)


def test_standard_output_takes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="-: this can't go to standard output"), new_file(Path("-"), overwrite=True):
        pass
    assert not list(tmp_path.iterdir())
