import errno
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from full_disk import pwrite_until_full
from h5py import h5a, h5d, h5s, h5t

from sekd_cli.errors import InputFileError, OutputError
from sekd_cli.file_errors import write_reason
from sekd_cli.hdf5_file import (
    CHECKSUM,
    METADATA_BYTES,
    add_attribute,
    attribute,
    check_name,
    create_hdf5,
    member,
    open_for_reading,
    read_arrays,
    read_numbers,
    write_arrays,
)
from sekd_cli.hdf5_writer import HDF5Writer, _put_in_place
from sekd_cli.staged_file import _write_journal, apply_journal, journal_of


def add(writer: HDF5Writer, index: int) -> None:
    """One group with an array of its own, committed."""
    group = writer.file.create_group(f"folder{index // 6}/image{index}")
    group["values"] = np.full(40, index, dtype=np.float32)
    group.attrs["complete"] = True
    writer.commit()


def committed(path: Path) -> list[int]:
    """Indices of the groups in a file, after checking that their arrays are whole."""
    with open_for_reading(path, "test") as file:
        found = []
        for folder in file.values():
            for name in folder:
                group = folder[name]
                if group.attrs.get("complete", False):
                    found.append(int(name.removeprefix("image")))
                    assert (group["values"][()] == found[-1]).all()
        return sorted(found)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.h5"


def test_what_was_committed_is_there_after_closing_and_opening_again(path: Path) -> None:
    for start in (0, 10):
        with HDF5Writer(path, {"schema": 1}) as writer:
            for index in range(start, start + 10):
                add(writer, index)
    assert committed(path) == list(range(20))
    with h5py.File(path) as file:  # any reader, not ours alone
        assert file.attrs["schema"] == 1
    assert list(path.parent.iterdir()) == [path]


def test_arrays_and_attributes_make_the_file_that_h5py_makes_of_them(path: Path) -> None:
    arrays = {
        "columns": np.arange(12, dtype=np.float32).reshape(4, 3).T,  # not as they lie in memory
        "halves": np.arange(5, dtype=np.float16),
        "nothing": np.zeros((0, 2), dtype=np.float32),
        "size": np.array([640, 480]),
    }
    attributes = {"complete": True, "source": np.array([1, 2]), "uncertainty": 0.5, "names": np.bytes_("é".encode())}
    other = path.with_name("other.h5")
    with create_hdf5(path, {}) as file:
        group = file.create_group("group")
        write_arrays(group, arrays)
        checksum = group.attrs[CHECKSUM]
        for name, value in attributes.items():
            add_attribute(group, name, value)
    with create_hdf5(other, {}) as file:
        group = file.create_group("group")
        for name, values in arrays.items():
            group.create_dataset(name, data=values)
        for name, value in {CHECKSUM: checksum, **attributes}.items():
            group.attrs[name] = value
    assert path.read_bytes() == other.read_bytes()


ATTRIBUTES = {
    "flag": True,
    "number": np.int32(-4),
    "numbers": np.arange(6, dtype=">i8").reshape(2, 3),
    "none of two": np.zeros((0, 2), np.float16),
    "bytes": np.bytes_(b"a\tb"),
    "several bytes": np.array([b"a", b"bcd"]),
    "text": "\u00fc",
    "texts": ["x", "yy"],
    "nothing": h5py.Empty("f4"),
    "complex": 1 + 2j,
    "record": np.array((1, 2.0), dtype=[("x", "i4"), ("y", "f8")]),
    "opaque": np.void(b"abcd"),
    "\u00fc": 3,
}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_an_attribute_is_what_h5py_reads(name: str, path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.attrs[name] = ATTRIBUTES[name]
        found, expected = attribute(file, name, "default"), file.attrs[name]
        assert type(found) is type(expected)
        assert getattr(found, "dtype", None) == getattr(expected, "dtype", None)
        if name != "nothing":
            np.testing.assert_array_equal(found, expected)
        assert attribute(file, f"no {name}") is None
        assert attribute(file, f"no {name}", 5) == 5


def test_arrays_are_what_h5py_reads(path: Path) -> None:
    numbers = {
        "big endian": np.arange(6, dtype=">f4").reshape(2, 3),
        "halves": np.arange(5, dtype=np.float16),
        "bytes": np.arange(5, dtype=np.uint8),
        "nothing": np.zeros((0, 2), np.float32),
        "one": np.float64(3.5),
        "\u00fc": np.arange(3),
    }
    with h5py.File(path, "w") as file:
        for name, values in numbers.items():
            file[name] = values
        file.create_dataset("packed", data=np.arange(1000.0), chunks=(64,), compression="gzip", shuffle=True)
        file["link"], file["nowhere"] = h5py.SoftLink("/halves"), h5py.SoftLink("/gone")
        found = read_arrays(file, [*numbers, "packed", "link", "nowhere", "gone"])
        assert list(found) == [*numbers, "packed", "link"]
        for name, values in found.items():
            expected = file[name][()]
            assert values.dtype == expected.dtype
            np.testing.assert_array_equal(values, expected)
            np.testing.assert_array_equal(read_numbers(file, name), expected)


def test_numbers_of_other_bits_than_numpy_has_are_what_h5py_reads(path: Path) -> None:
    halves = h5t.IEEE_F32LE.copy()  # bfloat16
    halves.set_fields(15, 7, 8, 0, 7)
    halves.set_ebias(127)
    halves.set_precision(16)
    halves.set_size(2)
    whole = h5t.STD_I32LE.copy()
    whole.set_precision(17)
    values = np.arange(-3, 5)
    with h5py.File(path, "w") as file:
        for name, kind in ((b"halves", halves), (b"whole", whole)):
            h5d.create(file.id, name, kind, h5s.create_simple((8,))).write(h5s.ALL, h5s.ALL, values)
            h5a.create(file.id, name, kind, h5s.create_simple((8,))).write(values)
        for name in ("halves", "whole"):
            np.testing.assert_array_equal(read_numbers(file, name), values)
            np.testing.assert_array_equal(attribute(file, name), values)


@pytest.mark.parametrize(
    "other", ["words", np.array([b"ab"]), np.array([1 + 2j]), np.array([True]), h5py.Empty("f4"), np.dtype("f4"), None]
)
def test_what_is_no_array_of_numbers_is_told(other: object, path: Path) -> None:
    with h5py.File(path, "w") as file:
        if other is None:
            file.create_group("a")
        else:
            file["a"] = other
        for read in (lambda: read_numbers(file, "a"), lambda: read_arrays(file, ["a"])):
            with pytest.raises(ValueError, match="a is no array of numbers"):
                read()
        with pytest.raises(ValueError, match="gone is no array of numbers"):
            read_numbers(file, "gone")


def test_little_of_a_files_structures_stays_in_memory(path: Path) -> None:
    with create_hdf5(path, {}) as file:
        assert file.id.get_mdc_config().max_size == METADATA_BYTES
    with open_for_reading(path, "test") as file:
        assert file.id.get_mdc_config().max_size == METADATA_BYTES
    with HDF5Writer(path, {}) as writer:
        assert writer.file.id.get_mdc_config().max_size < METADATA_BYTES


def test_a_member_is_what_h5py_opens_and_none_if_it_leads_nowhere(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["folder/\u00fc"] = [1, 2]
        file["link"], file["nowhere"] = h5py.SoftLink("/folder"), h5py.SoftLink("/gone")
        file["elsewhere"] = h5py.ExternalLink("gone.h5", "/x")
        file["type"] = np.dtype("f4")
        for name in ("folder", "link", "folder/\u00fc", "link/\u00fc"):
            found, expected = member(file, name), file.get(name)
            assert type(found) is type(expected)
            assert found == expected
        assert not isinstance(member(file, "type"), h5py.Group | h5py.Dataset)
        for name in ("nowhere", "elsewhere", "gone", "folder/gone", "nowhere/gone"):
            assert member(file, name) is None


def test_a_kill_after_any_single_operation_on_the_disk_loses_nothing(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every state that the disk goes through is kept, and each must hold all that was committed until then."""
    journal = path.with_name("file.h5.journal")
    states: list[tuple[Path, int]] = []
    count = 0

    def keep(journal_content: bytes | None) -> None:
        state = tmp_path / f"state{len(states)}.h5"
        shutil.copyfile(path, state)
        if journal_content is not None:
            with state.with_name(state.name + ".journal").open("wb") as stream:
                stream.write(journal_content)
        states.append((state, count))

    def and_keep(function: Callable[..., Any]) -> Callable[..., Any]:
        def done_and_kept(*arguments: Any) -> Any:
            result = function(*arguments)
            content = journal.read_bytes() if journal.exists() else None
            if content is not None and function.__name__ == "write_bytes":
                keep(content[: len(content) // 2])  # killed while the journal was being written
            keep(content)
            return result

        return done_and_kept

    with HDF5Writer(path, {}) as writer:
        for owner, name in ((os, "pwrite"), (os, "ftruncate"), (Path, "write_bytes"), (Path, "unlink")):
            monkeypatch.setattr(owner, name, and_keep(getattr(owner, name)))
        for index in range(25):
            add(writer, index)
            count = index + 1
        monkeypatch.undo()

    assert len(states) > 25 * 8
    for state, at_least in states:
        assert committed(state)[:at_least] == list(range(at_least)), state.name
        assert not state.with_name(state.name + ".journal").exists()


def test_a_kill_while_changes_are_applied_leaves_a_file_that_only_the_journal_mends(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the journal is needed at all: without it, some state in between can't be read."""
    broken = []
    journal = path.with_name("file.h5.journal")
    real = os.pwrite

    def and_try(*arguments: Any) -> int:
        written = real(*arguments)
        if journal.exists():
            state = tmp_path / "state.h5"
            shutil.copyfile(path, state)
            try:
                committed(state)
            except (InputFileError, OSError, RuntimeError, KeyError, TypeError):
                broken.append(state)
        return written

    with HDF5Writer(path, {}) as writer:
        monkeypatch.setattr(os, "pwrite", and_try)
        for index in range(25):
            add(writer, index)
        monkeypatch.undo()
    assert broken


@pytest.mark.parametrize("failing", range(12))
def test_a_full_disk_is_said_clearly_and_what_was_committed_stays(
    path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    def add_three(writer: HDF5Writer) -> None:
        for index in range(3, 6):
            try:
                add(writer, index)
            except (OSError, RuntimeError, ValueError) as error:  # before the commit
                raise writer.failure(error) from error

    with HDF5Writer(path, {}) as writer:
        for index in range(3):
            add(writer, index)
        monkeypatch.setattr(os, "pwrite", pwrite_until_full(failing))
        with pytest.raises(OutputError, match="disk is full; free some space; what was done is kept"):
            add_three(writer)
        monkeypatch.undo()
    assert committed(path)[:3] == [0, 1, 2]
    with HDF5Writer(path, {}) as writer:
        for index in range(6, 9):
            add(writer, index)
    assert set(committed(path)) >= {0, 1, 2, 6, 7, 8}


def test_an_exception_in_the_block_leaves_the_last_commit(path: Path) -> None:
    def fail() -> None:
        with HDF5Writer(path, {}) as writer:
            add(writer, 0)
            writer.file.create_group("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    with open_for_reading(path, "test") as file:
        assert list(file) == ["folder0"]


def test_a_second_writer_and_a_reader_are_told_to_wait(path: Path) -> None:
    with HDF5Writer(path, {}) as writer:
        add(writer, 0)
        with pytest.raises(OutputError, match="another process is using it"):
            HDF5Writer(path, {})
        with pytest.raises(OutputError, match="another process is using it"):
            HDF5Writer(path, {}, overwrite=True)
        with pytest.raises(InputFileError, match="being written by another process"):
            open_for_reading(path, "test")
        add(writer, 1)
    assert committed(path) == [0, 1]


def test_what_a_kill_left_of_a_new_file_is_cleared_away(path: Path) -> None:
    killed, at_work = (path.with_name(f".{path.name}.{process}.part") for process in (2**22 + 1, os.getppid()))
    for start in (0, 1):  # a new file, and one that is there
        killed.write_text("half")
        at_work.write_text("half")
        with HDF5Writer(path, {}) as writer:
            add(writer, start)
        assert not killed.exists()
        assert at_work.exists()


def test_overwriting_starts_afresh_and_an_empty_file_is_no_obstacle(path: Path) -> None:
    path.touch()
    with HDF5Writer(path, {}) as writer:
        add(writer, 0)
    with HDF5Writer(path, {}, overwrite=True) as writer:
        add(writer, 1)
    assert committed(path) == [1]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_that_is_not_hdf5_is_never_touched(path: Path, overwrite: bool) -> None:
    path.write_bytes(b"a photograph, say")
    with pytest.raises(OutputError, match="not an HDF5 file, so it stays as it is"):
        HDF5Writer(path, {}, overwrite=overwrite)
    assert path.read_bytes() == b"a photograph, say"


def test_impossible_outputs_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is a folder"):
        HDF5Writer(tmp_path, {})
    with pytest.raises(OutputError, match=r"file/feats\.h5: its folder is a file"):
        HDF5Writer(tmp_path / "file" / "feats.h5", {})


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.EROFS, "read-only"), (errno.EACCES, "permission denied"), (errno.EDQUOT, "quota"), (errno.EIO, "error")],
)
def test_the_operating_systems_reasons_come_with_a_remedy(number: int, words: str) -> None:
    assert words in write_reason(OSError(number, os.strerror(number)))


def test_missing_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.h5"
    with HDF5Writer(path, {}) as writer:
        add(writer, 0)
    assert committed(path) == [0]


def test_a_journal_of_another_file_is_thrown_away(path: Path) -> None:
    with HDF5Writer(path, {}) as writer:
        add(writer, 0)
    content = path.read_bytes()
    for strange in (b"", b"sekdjrn1", os.urandom(200), b"sekdjrn1" + bytes(40)):
        journal = path.with_name("file.h5.journal")
        journal.write_bytes(strange)
        assert committed(path) == [0]
        assert path.read_bytes() == content
        assert not journal.exists()


def test_a_journal_that_this_user_may_not_finish_is_told_as_that(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with HDF5Writer(path, {}) as writer:
        add(writer, 0)
    path.with_name("file.h5.journal").write_bytes(b"")

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InputFileError, match=r"file\.h5\.journal holds the last change.*run sekd info"):
        open_for_reading(path, "features")


def test_a_journal_that_changed_is_not_applied(path: Path) -> None:
    path.write_bytes(b"0" * 100)
    journal = journal_of(path)
    _write_journal(journal, 100, [(10, b"changed")])
    content = bytearray(journal.read_bytes())
    content[-1] ^= 1
    journal.write_bytes(content)
    with path.open("r+b") as file:
        apply_journal(file.fileno(), journal)
    assert path.read_bytes() == b"0" * 100
    assert not journal.exists()


def test_the_journal_of_a_writer_at_work_is_left_alone(path: Path) -> None:
    with HDF5Writer(path, {}):
        journal_of(path).write_bytes(b"half")
        with pytest.raises(InputFileError, match="being written by another process"):
            open_for_reading(path, "test")
        assert journal_of(path).read_bytes() == b"half"


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no such file"), (b"", "an empty file"), (b"text", "not an HDF5 file"), (b"\x89HDF\r\n\x1a\n", "damaged")],
)
def test_what_is_wrong_with_an_input_is_one_line(path: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputFileError, match=words) as raised:
        open_for_reading(path, "features")
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)
    assert "features file that sekd wrote" in str(raised.value)


@pytest.mark.parametrize("name", ["a.jpg", "b/c.jpg", "ü ö/x\ny.png", "..a", "a../b", " ", "..."])
def test_plain_names_are_allowed(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "./a", "a\0b", "\udcff"])
def test_names_that_lead_elsewhere_or_nowhere_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"plain relative path|UTF-8"):
        check_name(name)


def test_what_is_no_ordinary_file_is_never_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="no ordinary file"):
            HDF5Writer(pipe, {}, overwrite=overwrite)
    assert pipe.is_fifo()


def test_a_pipe_behind_a_descriptor_is_no_ordinary_file() -> None:
    """As bash gives it for `-o >(command)`."""
    reading, writing = os.pipe()
    with pytest.raises(OutputError, match="no ordinary file"):
        HDF5Writer(Path(f"/dev/fd/{writing}"), {})
    os.close(reading)
    os.close(writing)


def test_a_link_stays_one_and_what_it_leads_to_is_written(tmp_path: Path) -> None:
    link, real = tmp_path / "link.h5", tmp_path / "disk" / "real.h5"
    link.symlink_to(real)
    for overwrite in (False, True):  # first where it leads nowhere
        with HDF5Writer(link, {"overwrite": overwrite}, overwrite=overwrite):
            pass
        assert link.is_symlink()
        with h5py.File(real) as file:
            assert file.attrs["overwrite"] == overwrite
    assert journal_of(link) == journal_of(real)


def test_a_file_system_without_hard_links_is_written_to(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Path, "hardlink_to", refused)
    with HDF5Writer(path, {"made": 1}):
        pass
    with h5py.File(path) as file:
        assert file.attrs["made"] == 1


def test_without_hard_links_the_faster_of_two_processes_keeps_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Path, "hardlink_to", refused)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.write_text("ours")
    theirs.write_text("theirs")
    with pytest.raises(FileExistsError):
        _put_in_place(ours, theirs)
    assert theirs.read_text() == "theirs"


def test_the_slower_of_two_processes_leaves_no_file_open(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slower(*_: object) -> None:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    monkeypatch.setattr("sekd_cli.hdf5_writer._put_in_place", slower)
    before = sorted(Path("/dev/fd").iterdir())
    with pytest.raises(OutputError, match="another process is using it"):
        HDF5Writer(path, {})
    assert sorted(Path("/dev/fd").iterdir()) == before


def test_a_file_system_without_locks_is_written_to_and_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refused)
    with HDF5Writer(path, {}) as writer:
        add(writer, 0)
    assert committed(path) == [0]


def test_a_disk_that_takes_a_little_at_a_time_gets_everything(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, offset: real(file, data[:100], offset))
    with HDF5Writer(path, {}) as writer:
        for index in range(3):
            add(writer, index)
    assert committed(path) == [0, 1, 2]


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_was_deleted_or_replaced_meanwhile_is_told(path: Path, replaced: bool) -> None:
    writer = HDF5Writer(path, {})
    add(writer, 0)
    path.unlink()
    if replaced:
        path.write_bytes(b"another's")
    with pytest.raises(OutputError, match="deleted or replaced"):
        add(writer, 1)
    writer.close()


def test_a_new_file_on_a_full_disk_is_one_error(path: Path) -> None:
    program = f"""
import numpy, resource
from sekd_cli.hdf5_file import create_hdf5
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    with create_hdf5({str(path)!r}, {{}}) as file:
        for index in range(300):
            file[str(index)] = numpy.arange(1000)
except OSError as error:
    print(error.errno)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{errno.EFBIG}\n", "")
