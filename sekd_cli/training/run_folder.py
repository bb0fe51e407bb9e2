"""A run's folder: its settings, where its photographs are, and its log. The same command again goes on from it."""

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sekd_cli.errors import InputFileError, OutputError, SekdError
from sekd_cli.file_errors import write_reason
from sekd_cli.kept_file import changed
from sekd_cli.new_file import new_file
from sekd_cli.training.settings import TrainingSettings, read_settings


class RunFolder:
    """`config.toml`, `data.json`, `log.jsonl`, `lock`, and what `SelfEvolution` writes beside them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._whole_lines = False

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a state to go on from."""
        return (self.path / "checkpoint.pt").is_file()

    @property
    def has_results(self) -> bool:
        """Whether a run was begun here and has come to anything that another one would replace."""
        results = ("labels-*.npy", "checkpoint.pt", "*.safetensors")
        return (self.path / "config.toml").is_file() and any(any(self.path.glob(name)) for name in results)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training here while the block runs; the folder is made where it is missing.

        Raises OutputError if one does already, or the folder can't be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            stream = (self.path / "lock").open("ab")
        except OSError as error:
            raise OutputError(f"{self.path}: {write_reason(error)}") from error
        with stream:
            try:
                # not flock, which the data processes of a run that was killed would hold for seconds
                fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):  # else a file system without locks
                    message = f"{self.path}: another process is training in it; wait for that one, or give another -o"
                    raise OutputError(message) from error
            yield

    def begin(self, settings: TrainingSettings, data: list[str], cache: Path) -> None:
        """Note what the run is made of, for any working directory to go on from.

        A run that made nothing yet is replaced. Raises OutputError if the folder holds a run of other settings or
        photographs, or files that have these names and are no run's, or can't be written.
        """
        if self.has_results:
            differences = changed(asdict(self.settings().rooted()), asdict(settings.rooted()))
            differences += ["of other photographs"] if self.data()["data"] != data else []
            if differences:
                raise OutputError(
                    f"{self.path}: holds another run ({'; '.join(differences)}); give another folder to -o, "
                    f"or go on with it: sekd train --resume {self.path}"
                )
            return
        for name, read in (("config.toml", self.settings), ("data.json", self.data)):
            try:
                if (self.path / name).exists():
                    read()
            except SekdError as error:
                message = f"{self.path / name}: not of a run, which would replace it; give another folder to -o"
                raise OutputError(message) from error
        inside = cache.resolve() == self.path.resolve()  # so that it goes where the run folder goes
        facts = {"data": data, "cache": "." if inside else str(cache.resolve())}
        write_whole(self.path / "data.json", json.dumps(facts, indent=1))
        write_whole(self.path / "config.toml", settings.rooted().as_toml())  # last: the run has begun

    def check_what_is_left(self) -> None:
        """Raise OutputError if there are weights, which a new run would replace, but no checkpoint to go on from."""
        for weights in (self.path / "model.safetensors", self.path / "best.safetensors"):
            if weights.is_file() and not self.has_checkpoint:
                message = f"{weights}: a new run would replace it, and there is no checkpoint to go on from"
                raise OutputError(f"{message}; start the run in another folder")

    def check_photographs(self, digest: str) -> None:
        """Note the digest of the photographs; OutputError if there are labels of others, which would go astray.

        A run of before such notes takes those of now for its own.
        """
        facts = self.data()
        if facts.get("photographs") == digest:
            return
        if self.has_results and "photographs" in facts:
            raise OutputError(
                f"{self.path}: the photographs have changed since they were labelled; put them back, "
                "or start a new run in another folder"
            )
        write_whole(self.path / "data.json", json.dumps(facts | {"photographs": digest}, indent=1))

    def settings(self) -> TrainingSettings:
        """The settings of the run; InputFileError if none was started here."""
        return read_settings(self.path / "config.toml")

    def data(self) -> dict[str, Any]:
        """What was noted of the photographs: `data` (paths), `cache` (a folder, seen from the run's) and their digest.

        The digest is there once they are decoded. Raises InputFileError if no run was started here.
        """
        file = self.path / "data.json"
        try:
            facts: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return facts | {"data": [str(path) for path in facts["data"]], "cache": str(facts["cache"])}
        except FileNotFoundError as error:
            raise InputFileError(f"{self.path}: holds no run; check the path") from error
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputFileError(f"{file}: missing or damaged; start a new run in another folder") from error

    def log(self, entry: dict[str, Any]) -> None:
        """Append a line to the log; a kill can cost the last line, never an earlier one. Raises OutputError."""
        file = self.path / "log.jsonl"
        torn = not self._whole_lines and file.is_file() and not file.read_bytes().endswith(b"\n")  # by a kill
        self._whole_lines = True
        try:
            with file.open("a", encoding="utf-8") as stream:
                stream.write("\n" * torn + json.dumps(entry) + "\n")
        except OSError as error:
            raise OutputError(f"{file}: {write_reason(error)}") from error

    def entries(self) -> list[dict[str, Any]]:
        """The log, without what a kill tore, what is no entry, and lost steps; of what was done twice, the last."""
        file = self.path / "log.jsonl"
        entries: dict[tuple[Any, ...], dict[str, Any]] = {}
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else ():
            with suppress(ValueError, AttributeError, KeyError, TypeError, RecursionError):
                entry = json.loads(line)
                key = tuple(entry.get(name) for name in ("action", "round", "what", "step"))
                if entry["action"] == "begin":
                    entries = {key: one for key, one in entries.items() if one.get("run_step", 0) <= entry["run_step"]}
                entries.pop(key, None)
                entries[key] = entry
        return list(entries.values())


def run_begun(folder: Path) -> bool:
    """Whether there is a run in a folder."""
    return all(os.path.isfile(folder / name) for name in ("config.toml", "data.json"))


def write_whole(path: Path, text: str) -> None:
    """Write a file, or replace it, whole or not at all, whenever the process is killed. Raises OutputError."""
    with new_file(path, overwrite=True) as part:
        part.write_text(text, encoding="utf-8", errors="replace")  # a report names paths, which may be no text
