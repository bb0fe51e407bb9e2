import errno
import logging
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from sekd_cli import __version__, cli
from sekd_cli.errors import (
    DeviceError,
    ImageError,
    InputFileError,
    MissingExtraError,
    OutputError,
    SekdError,
    UsageError,
)


@pytest.fixture
def with_command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], Callable[..., int]]:
    """Run a function as the subcommand `try`, through the edge."""

    def running(function: Callable[[], object]) -> Callable[..., int]:
        command = click.Command("try", callback=function)
        monkeypatch.setattr(cli, "COMMANDS", {"try": "Try."})
        monkeypatch.setattr(cli.importlib, "import_module", lambda _: type("module", (), {"try": command}))
        return lambda *options: cli.main(["try", *options])

    return running


def failing(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def test_help_lists_every_subcommand_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    for name, tells in cli.COMMANDS.items():
        assert [name, tells] in lines


def test_every_command_and_every_command_of_a_command_takes_the_common_options() -> None:
    context = click.Context(cli.cli)
    for name in cli.cli.list_commands(context):
        command = cli.cli.get_command(context, name)
        assert command is not None
        below = command.commands.values() if isinstance(command, click.Group) else ()
        for one in (command, *below):
            flags = {flag for parameter in one.params for flag in parameter.opts}
            assert flags >= {"--quiet", "--verbose", "--log-file"}, f"{name}: {one.name}"


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["extrakt"], ["extract"], ["extract", "x", "--no-such-option"]])
def test_wrong_usage_is_two(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Error:" in captured.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SekdError("some failed"), 1),
        (ImageError("an image"), 1),
        (InputFileError("weights"), 4),
        (OutputError("disk"), 5),
        (MissingExtraError("pycolmap", "colmap"), 6),
        (DeviceError("cuda"), 7),
    ],
)
def test_errors_are_one_line_and_their_exit_code(
    with_command: Callable[..., Callable[..., int]], capsys: pytest.CaptureFixture[str], error: SekdError, code: int
) -> None:
    assert with_command(failing(error))() == code
    captured = capsys.readouterr()
    assert captured.err == f"error: {error}\n"
    assert captured.out == ""


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "memory ran out"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "memory ran out"),
        (RuntimeError("can't start new thread"), "no more threads"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error."), "/dev/shm"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "noexec"),
    ],
)
def test_what_runs_out_in_whatever_step_is_one_line_and_seven(
    with_command: Callable[..., Callable[..., int]], capsys: pytest.CaptureFixture[str], error: Exception, told: str
) -> None:
    assert with_command(failing(error))() == 7
    line = capsys.readouterr().err
    assert told in line
    assert line.count("\n") == 1
    with pytest.raises(RuntimeError, match="a fault of ours"):
        with_command(failing(RuntimeError("a fault of ours")))()


def test_names_with_line_breaks_and_bytes_that_are_no_text_stay_on_one_line(
    with_command: Callable[..., Callable[..., int]], capsys: pytest.CaptureFixture[str]
) -> None:
    with_command(failing(OutputError("a\nb\x1b[31m\udcff ü: full")))()
    assert capsys.readouterr().err == "error: a\\nb\\x1b[31m\\udcff ü: full\n"


def test_an_interrupt_is_said_without_a_traceback(
    with_command: Callable[..., Callable[..., int]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert with_command(failing(KeyboardInterrupt()))() == 130
    assert capsys.readouterr().err.strip() == "error: interrupted"


def test_what_a_command_returns_is_the_exit_code(with_command: Callable[..., Callable[..., int]]) -> None:
    assert with_command(lambda: 1)() == 1
    assert with_command(lambda: None)() == 0


def test_quiet_keeps_errors_and_the_log_file_keeps_everything(
    with_command: Callable[..., Callable[..., int]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def talk() -> None:
        for level in ("debug", "info", "warning", "error"):
            getattr(cli.logger, level)("%s said", level)

    command, log = with_command(talk), tmp_path / "log.txt"
    command()
    assert capsys.readouterr().err == "info said\nwarning: warning said\nerror: error said\n"
    command("--verbose")
    assert capsys.readouterr().err == "debug: debug said\ninfo said\nwarning: warning said\nerror: error said\n"
    command("--quiet", "--log-file", str(log))
    assert capsys.readouterr().err == "warning: warning said\nerror: error said\n"
    assert [line.split()[-2:] for line in log.read_text().splitlines()] == [
        [level, "said"] for level in ("debug", "info", "warning", "error")
    ]


def test_a_log_that_cannot_be_written_is_an_output_error(
    with_command: Callable[..., Callable[..., int]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "no").touch()
    assert with_command(lambda: None)("--log-file", str(tmp_path / "no" / "log")) == 5
    assert "the log can't be written (Not a directory)" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    program = "import sys, sekd_cli.cli as c; sys.exit(c.main(['--help']))"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("PASSIVE", "20000")),
        ({"GOMP_SPINCOUNT": "7"}, ("PASSIVE", "7")),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, ("ACTIVE", None)),
    ],
)
def test_idle_threads_sleep_unless_the_environment_says_otherwise(
    given: dict[str, str], expected: tuple[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    for name in names:
        monkeypatch.setenv(name, "")  # so that what main sets is undone
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    cli.main(["--version"])
    assert tuple(os.environ.get(name) for name in names) == expected


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_a_full_disk_behind_stdout_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "sekd_cli", "--version"], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == OutputError.exit_code
    assert done.stderr.decode().splitlines() == ["error: output: No space left on device"]


def test_closed_streams_are_no_traceback() -> None:
    run = f"{sys.executable} -m sekd_cli"
    closed = subprocess.run(["sh", "-c", f"{run} --version >&-"], stderr=subprocess.PIPE, check=False)
    assert (closed.returncode, closed.stderr) == (0, b"")
    no_list = subprocess.run(["sh", "-c", f"{run} pairs - <&-"], stderr=subprocess.PIPE, check=False)
    assert no_list.returncode == UsageError.exit_code
    assert b"standard input is closed" in no_list.stderr
    untold = subprocess.run(["sh", "-c", f"{run} extract 2>&-"], stdout=subprocess.PIPE, check=False)
    assert (untold.returncode, untold.stdout) == (UsageError.exit_code, b"")


def test_characters_that_the_terminal_lacks_are_one_line(with_command: Callable[..., Callable[..., int]]) -> None:
    def speak() -> None:
        raise UnicodeEncodeError("latin-1", "\u2585", 0, 1, "ordinal not in range(256)")

    assert with_command(speak)() == OutputError.exit_code


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_a_log_on_a_full_disk_is_told_once(
    with_command: Callable[..., Callable[..., int]], capsys: pytest.CaptureFixture[str]
) -> None:
    def talk() -> None:
        for _ in range(3):
            logging.getLogger("sekd_cli.x").info("hello")

    assert with_command(talk)("--log-file", "/dev/full") == 0
    assert capsys.readouterr().err.count("no more goes into this log") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        "train --data photos -o run --pause-after nan",
        "train --data photos -o run --minutes nan",
        "train --data photos -o run --set rounds=100000000000000000000000",
        "train --data photos -o run --workers 2147483648",
        "train --data photos -o run --threads 2147483648",
        "extract photos --threads 2147483648",
        pytest.param("extract photos --shard 1/" + 5000 * "9", id="shard"),
        "match pairs.txt --cache nan",
        "match pairs.txt --threads 2147483648",
        "average a.safetensors -o b.safetensors --share nan",
        "show photo.jpg --max-pixels -1",
        "evaluate pose . --max-angle nan",
        "evaluate speed --method sift --max-keypoints 2147483648",
        "evaluate speed --method sift --threads 2147483648",
    ],
)
def test_a_number_that_is_none_or_far_too_large_is_told_at_once(
    arguments: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments.split()) == UsageError.exit_code
    assert capsys.readouterr().err.splitlines()[-1].lower().startswith("error: ")


def test_a_misspelled_command_is_told_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["extrac", "photos"]) == UsageError.exit_code
    assert "Did you mean 'extract'?" in capsys.readouterr().err


def test_once_all_is_said_an_interrupt_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "main", lambda: 3)
    before = signal.getsignal(signal.SIGINT)
    try:
        assert cli.run() == 3
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_threads_that_are_left_when_interrupted_twice_see_no_shutdown() -> None:
    program = "import atexit; from sekd_cli import cli; atexit.register(print, 1); cli.main = lambda: {}; cli.run()"
    for code, said in ((0, b"1\n"), (130, b"")):
        finished = subprocess.run([sys.executable, "-c", program.format(code)], capture_output=True, check=False)
        assert (finished.returncode, finished.stdout) == (code, said)


def test_a_second_interrupt_while_the_first_is_told_of_changes_nothing() -> None:
    program = "import os; from sekd_cli import cli; cli.main = lambda: os.kill(os.getpid(), 2); cli.run()"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (finished.returncode, finished.stderr) == (130, b"")


@pytest.mark.parametrize("name", ["extract", "match", "train"])
def test_those_that_go_on_say_so_when_interrupted(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = click.Command(name, callback=failing(KeyboardInterrupt()))
    monkeypatch.setattr(cli.importlib, "import_module", lambda _: type("module", (), {name: command}))
    assert cli.main([name]) == 130
    assert capsys.readouterr().err.strip() == "error: interrupted; run the same command to go on"


def test_a_log_in_a_new_folder_and_where_it_happened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "new" / "log.txt"
    assert cli.main(["info", "gone.h5", "--log-file", str(log)]) == InputFileError.exit_code
    assert "Traceback" in log.read_text()
    assert "Traceback" not in capsys.readouterr().err


def test_what_can_not_be_written_is_named(
    with_command: Callable[..., Callable[..., int]], capsys: pytest.CaptureFixture[str]
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "there/file.h5")
    assert with_command(failing(full))() == OutputError.exit_code
    assert capsys.readouterr().err == "error: there/file.h5: No space left on device\n"


def test_the_libraries_keep_their_warnings_to_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENCV_LOG_LEVEL", "")  # so that what main sets is undone
    monkeypatch.delenv("OPENCV_LOG_LEVEL")
    with warnings.catch_warnings():
        cli.main(["--version"])
        assert any(kept[0] == "ignore" and kept[3] and kept[3].pattern == r"PIL\." for kept in warnings.filters)
    assert os.environ["OPENCV_LOG_LEVEL"] == "SILENT"


def test_a_system_without_posix_locks_is_told_where_it_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # as Windows has none
    assert cli.main(["--help"]) == 2
    assert capsys.readouterr().err == "error: sekd needs Linux or macOS; on Windows run it in WSL\n"
