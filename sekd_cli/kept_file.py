"""What feature files and match files have in common: a schema, one writer that goes on, a clear line for damage."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Self

from sekd_cli.errors import InputFileError, OutputError
from sekd_cli.hdf5_file import open_for_reading, plain_attributes, watching_for_damage
from sekd_cli.hdf5_writer import HDF5Writer

SCHEMA = 1  # raised when a file written now can't be read by the code of before


class KeptReader:
    """A file open for reading, written by `sekd` (`_own`) or by another tool with hloc's layout."""

    content: ClassVar[str]  # in messages
    remedy: ClassVar[str]  # of damage

    def __init__(self, path: Path) -> None:
        """Raises InputFileError if the file is missing, damaged, not HDF5, of the other kind or of a later version."""
        self.path = Path(path)
        self._file = open_for_reading(self.path, self.content)
        try:
            with self._reading():
                self.attributes: Mapping[str, Any] = plain_attributes(self._file)
            schema = self.attributes.get("sekd_schema")
            self._own = schema is not None
            if isinstance(schema, int) and schema > SCHEMA:
                raise InputFileError(f"{path}: written by a later sekd (schema {schema}, not {SCHEMA}); update sekd")
            kind = self.attributes.get("content", "features")  # which feature files don't say
            if self._own and str(kind) != self.content:
                raise InputFileError(f"{path}: holds {kind}, not {self.content}; give the {self.content} file")
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _reading(self, where: str = "") -> AbstractContextManager[None]:
        return watching_for_damage(where or self.path, self.remedy)


class KeptWriter(ABC):
    """A file to add to; durable after `commit`. One writer a file. Goes on where one stopped."""

    called: ClassVar[str]  # what such a file is, in messages

    def __init__(self, path: Path, attributes: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Open `path` to go on with it, or create it with the root `attributes`.

        Raises OutputError if it can't be written, another process writes it, or, unless `overwrite` starts afresh, what
        it holds was made with other attributes.
        """
        self.path = Path(path)
        if str(path) in {"-", "/dev/stdout"}:
            raise OutputError(f"{path}: HDF5 can't go to standard output; give a file with -o")
        self._writer = HDF5Writer(self.path, attributes, overwrite=overwrite)
        try:
            with self._reading():
                here = plain_attributes(self._writer.file)
                own = "sekd_schema" in here
                kind, wanted = (one.get("content", "features") for one in (here, attributes))
                if own and kind != wanted:
                    raise OutputError(f"{self.path}: holds {kind}, not {wanted}; give another output with -o")
                if not own and len(self._writer.file):
                    remedy = "give another output with -o, or --overwrite to replace it"
                    raise OutputError(f"{self.path}: not a {self.called} of sekd; {remedy}")
                differences = self._differences(attributes) if own else ["no attributes"]
                started = own and bool(differences) and self._started()
            if started:
                raise OutputError(f"{self.path}: {self._refusal('; '.join(differences))}")
            if differences:
                self._writer.close()
                self._writer = HDF5Writer(self.path, attributes, overwrite=True)
        except BaseException:
            self._writer.close()
            raise

    @abstractmethod
    def _differences(self, attributes: Mapping[str, Any]) -> list[str]:
        """In words, where the file's attributes are not those given; the version of sekd alone changes nothing."""

    @abstractmethod
    def _started(self) -> bool:
        """Whether there is anything that starting afresh would lose."""

    @abstractmethod
    def _refusal(self, differences: str) -> str:
        """What to say of a file that was made otherwise."""

    def commit(self) -> None:
        """Make everything written so far durable. Raises OutputError if the file can't be written."""
        self._writer.commit()

    def close(self) -> None:
        """Commit, close the file and let other writers in."""
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.__exit__(*error)

    def _reading(self) -> AbstractContextManager[None]:
        return watching_for_damage(self.path, "give --overwrite to start afresh", OutputError)


def changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """A phrase for each setting that differs: `NAME OLD there, NEW now`."""
    return [
        f"{name} {short(old.get(name))} there, {short(new.get(name))} now"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def short(value: object) -> str:
    """A setting as messages show it."""
    text = str(value)
    return text if len(text) <= 20 else text[:12] + "..."  # a SHA-256
