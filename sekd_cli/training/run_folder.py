"""A run's folder: its settings, where its photographs are, and its log. The same command again goes on from it."""

import json
from pathlib import Path
from typing import Any

from sekd_cli.errors import InputFileError, OutputError
from sekd_cli.training.settings import TrainingSettings, read_settings


class RunFolder:
    """`config.toml`, `data.json`, `log.jsonl`, and what `SelfEvolution` writes beside them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._whole_lines = False

    @property
    def begun(self) -> bool:
        """Whether a run was ever started here."""
        return (self.path / "config.toml").is_file()

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a state to go on from."""
        return (self.path / "checkpoint.pt").is_file()

    def begin(self, settings: TrainingSettings, data: list[str], cache: Path) -> None:
        """Note what the run is made of; OutputError if the folder holds a run of other settings or can't be written."""
        if self.begun:
            if self.settings() != settings or self.data()["data"] != data:
                raise OutputError(
                    f"{self.path}: holds a run of other settings or photographs; give another folder to -o, "
                    f"or go on with it: sekd train --resume {self.path}"
                )
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            facts = {"data": data, "cache": str(cache)}
            write_whole(self.path / "data.json", json.dumps(facts, indent=1))
            write_whole(self.path / "config.toml", settings.as_toml())  # last: the run has begun
        except OSError as error:
            raise OutputError(f"{self.path}: can't be written ({error.strerror}); give another folder to -o") from error

    def settings(self) -> TrainingSettings:
        """The settings of the run; InputFileError if none was started here."""
        return read_settings(self.path / "config.toml")

    def data(self) -> dict[str, Any]:
        """What `begin` noted of the photographs: `data` (paths) and `cache` (folder)."""
        file = self.path / "data.json"
        try:
            facts = json.loads(file.read_text(encoding="utf-8"))
            return {"data": [str(path) for path in facts["data"]], "cache": str(facts["cache"])}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputFileError(f"{file}: missing or damaged; start a new run in another folder") from error

    def log(self, entry: dict[str, Any]) -> None:
        """Append a line to the log; a kill can cost the last line, never an earlier one."""
        file = self.path / "log.jsonl"
        torn = not self._whole_lines and file.is_file() and not file.read_bytes().endswith(b"\n")  # by a kill
        self._whole_lines = True
        with file.open("a", encoding="utf-8") as stream:
            stream.write("\n" * torn + json.dumps(entry) + "\n")

    def entries(self) -> list[dict[str, Any]]:
        """The log, without what a kill tore; of steps done twice, before a kill and after, the last."""
        file = self.path / "log.jsonl"
        entries: dict[tuple[Any, ...], dict[str, Any]] = {}
        for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
            try:
                entry = json.loads(line)
                key = tuple(entry.get(name) for name in ("action", "round", "what", "step"))
            except (ValueError, AttributeError):
                continue
            entries.pop(key, None)
            entries[key] = entry
        return list(entries.values())


def write_whole(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all, whenever the process is killed."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
