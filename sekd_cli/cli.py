"""The command line's edge: finds subcommands, sets up logging, turns errors into one line and an exit code."""

import contextlib
import difflib
import gc
import importlib.util
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from sekd_cli import __version__
from sekd_cli.errors import (
    DATA_PROCESS_DIED,
    NOT_LOADED,
    SHORT_OF_THREADS,
    DeviceError,
    OutputError,
    SekdError,
    UsageError,
    short_of_memory,
)
from sekd_cli.new_file import make_folder

# Subcommands by name, with the help that `sekd --help` shows, so that it need not load them (and torch).
COMMANDS = {
    "extract": "Find and describe keypoints in photographs.",
    "match": "Match the keypoints of pairs of photographs.",
    "refine": "Move keypoints so that matches agree.",
    "pairs": "List which photographs to match with which.",
    "train": "Train a network on a folder of photographs.",
    "average": "Average several trained networks into one.",
    "evaluate": "Measure features: homographies, poses, mapping, speed.",
    "show": "Draw keypoints or matches.",
    "info": "Say what a feature, match or weights file holds.",
    "export": "Write a COLMAP database or an ONNX model.",
    "convert": "Turn feature and match files into other layouts.",
    "merge": "Join the files of shards.",
}
RESUMABLE = {"extract", "match", "train"}
COLLECT_EVERY = 10_000  # objects: torch's import makes some 400,000, of which none is garbage
INTERRUPTED = 130  # what shells give for Ctrl-C
BROKEN_PIPE = 141  # the reader of stdout went away; what shells give for that

logger = logging.getLogger("sekd_cli")


class LazyGroup(click.Group):
    """Imports a subcommand when it is called; each takes the common options too."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of COMMANDS."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The subcommand, imported now."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f"sekd_cli.commands.{cmd_name}"), cmd_name)
        _add_common_options(command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with the nearest name where there is no such command, as click has it for options."""
        near = difflib.get_close_matches(args[0], COMMANDS, n=1)
        if args[0] not in COMMANDS and near and not ctx.resilient_parsing:
            ctx.fail(f"No such command '{args[0]}'. Did you mean '{near[0]}'?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in the help, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _quieter(context: click.Context, _: click.Parameter, quiet: bool) -> None:
    if quiet:
        _set_level(logging.WARNING)


def _louder(context: click.Context, _: click.Parameter, verbose: bool) -> None:
    if verbose:
        _set_level(logging.DEBUG)


def _log_to(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    try:
        make_folder(path.parent)
        handler = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise OutputError(f"{path}: the log can't be written ({error.strerror}); give another --log-file") from error
    handler.setLevel(logging.DEBUG)
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)


def _common_options() -> list[click.Option]:
    """Options that the group and every subcommand take; they act at once and reach no function."""
    return [
        click.Option(
            ["--quiet", "-q"], is_flag=True, expose_value=False, callback=_quieter, help="Warnings and errors only."
        ),
        click.Option(["--verbose", "-v"], is_flag=True, expose_value=False, callback=_louder, help="Every detail."),
        click.Option(
            ["--log-file"],
            type=click.Path(dir_okay=False, path_type=Path),
            expose_value=False,
            callback=_log_to,
            help="Add every detail to this file.",
        ),
    ]


def _add_common_options(command: click.Command) -> None:
    taken = {flag for parameter in command.params for flag in parameter.opts}
    command.params += [option for option in _common_options() if not taken.intersection(option.opts)]
    if isinstance(command, click.Group):
        for subcommand in command.commands.values():
            _add_common_options(subcommand)


@click.group(cls=LazyGroup, params=_common_options(), context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sekd")
def cli() -> None:
    """Find, describe and match keypoints in photographs, and train that on photographs of your own.

    \b
    sekd extract photos -o feats.h5
    sekd pairs photos --exhaustive | sekd match - --features feats.h5 -o matches.h5
    """  # noqa: D301 - click's mark for lines that stay as they are


def _let_idle_threads_sleep() -> None:
    """Idle threads of torch leave the cores to decoding and to others, but not between two layers of a network.

    For GNU's OpenMP 20,000 turns of a loop, some tens of microseconds, come before sleep: docs/EXPERIMENTS.md, 54.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")


def _check_system() -> None:
    if importlib.util.find_spec("fcntl") is None:
        raise UsageError("sekd needs Linux or macOS; on Windows run it in WSL")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (see `errors.py` and README)."""
    _let_idle_threads_sleep()
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # what it has to say of an image, the caller says
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of damaged EXIF, which changes nothing
    logging.getLogger("PIL").addHandler(logging.NullHandler())  # what it logs would come without the file's name
    _set_up_logging()
    try:
        _check_system()
        result: Any = cli.main(arguments, prog_name="sekd", standalone_mode=False)
        if sys.stdout is not None:  # it may be closed
            sys.stdout.flush()
    except SekdError as error:
        logger.error("%s", error)
        logger.debug("where it happened:", exc_info=True)
        return error.exit_code
    except click.ClickException as error:
        if sys.stderr is not None:  # else click shows it on stdout
            error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        given = sys.argv[1:] if arguments is None else arguments
        logger.error("interrupted; run the same command to go on" if RESUMABLE.intersection(given) else "interrupted")
        return INTERRUPTED
    except (BrokenPipeError, SystemExit):  # click leaves so where it noticed the first, and there alone
        _silence_output()
        return BROKEN_PIPE
    except (OSError, UnicodeEncodeError) as error:
        return _output_failed(error)
    except (MemoryError, RuntimeError, ImportError) as error:
        result = _ran_out(error)
    return result if isinstance(result, int) else 0


def run() -> int:
    """`main` as the whole of a process. Once it is done, Ctrl-C no longer interrupts the shutdown of torch.

    Python looks for garbage less often, and not at the end: among all of torch's objects that takes half a second.
    """
    gc.set_threshold(COLLECT_EVERY, *gc.get_threshold()[1:])
    try:
        code = main()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    except KeyboardInterrupt:  # while `main` told of an earlier one, or was over
        code = INTERRUPTED
    if code == INTERRUPTED:  # a second Ctrl-C leaves threads at work, which crash where Python shuts down
        os._exit(code)
    gc.freeze()
    return code


def _output_failed(error: OSError | UnicodeEncodeError) -> int:
    """One line for an error that no command caught: a full disk behind stdout, a character that a terminal lacks."""
    if isinstance(error, OSError):
        logger.error("%s: %s", error.filename or "output", error.strerror or error)
        _silence_output()
    else:
        logger.error("output: it has characters that %s lacks; set PYTHONUTF8=1", error.encoding)
    logger.debug("where it happened:", exc_info=True)
    return OutputError.exit_code


def _ran_out(error: MemoryError | RuntimeError | ImportError) -> int:
    """One line where memory or threads ran out, in whatever step; other errors are faults of ours, and raised again."""
    if short_of_memory(error):
        logger.error("memory ran out; end other programs, or give less to do at once (COMMAND --help)")
    elif NOT_LOADED in str(error):
        reasons = "memory ran out, or its disk is mounted noexec"
        logger.error("a library can't be loaded: %s; end other programs, or install sekd elsewhere", reasons)
    elif SHORT_OF_THREADS in str(error):
        logger.error("the system lets this user have no more threads; end other programs, or raise ulimit -u")
    elif DATA_PROCESS_DIED in str(error):
        remedy = "give fewer --workers, or docker run more --shm-size, and run the same command to go on"
        logger.error("a data process died, for lack of memory or of shared memory (/dev/shm); %s", remedy)
    else:
        raise error
    logger.debug("where it happened:", exc_info=True)
    return DeviceError.exit_code


def _silence_output() -> None:
    """Let what Python still holds for stdout go nowhere, or it complains when it exits."""
    if sys.stdout is not None:
        with contextlib.suppress(OSError):  # not a file, in a program that calls `main`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _OneLine(logging.Formatter):
    """One record, one line: file names may hold line breaks, and bytes that are no text."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name in `logging`
        text = super().formatMessage(record)
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _LogFile(logging.FileHandler):
    """Says once that it can't be written, and no more."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name in `logging`
        if self in logger.handlers:
            error = sys.exc_info()[1]
            logger.removeHandler(self)
            self.close()
            reason = getattr(error, "strerror", None) or "can't be written"
            logger.warning("%s: no more goes into this log (%s)", self.baseFilename, reason)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # told already
            super().close()


class _StandardError(logging.StreamHandler[Any]):
    """Writes to what `sys.stderr` is at the moment: a progress bar or a test may stand in for it."""

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, value: Any) -> None:
        pass  # given by the base class when it is made

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno == logging.INFO else f"{record.levelname.lower()}: {text}"


def _set_up_logging() -> None:
    for handler in logger.handlers[:]:
        logger.removeHandler(handler)
        handler.close()
    handler = _StandardError()
    handler.setFormatter(_OneLine())
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    _set_level(logging.INFO)


def _set_level(level: int) -> None:
    """What reaches stderr; a log file gets everything."""
    logger.handlers[0].setLevel(level)
