"""What failed, as JSON lines, for `--failures` of extract and match."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from sekd_cli.errors import OutputError
from sekd_cli.new_file import make_folder


def same_file(one: Path, other: Path) -> bool:
    """Whether both are, or would be, the same file."""
    if os.path.exists(one) and os.path.exists(other):
        return one.samefile(other)
    return os.path.realpath(one) == os.path.realpath(other)


class FailureList:
    """A file that gets a line as each thing fails; without a path nothing. Raises OutputError."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: IO[str] | None = None
        if path is not None:
            with self._writing():
                make_folder(path.parent)
                self._file = path.open("w", encoding="utf-8")

    def add(self, record: dict[str, object]) -> None:
        """Write a line at once."""
        if self._file is not None:
            with self._writing():
                print(json.dumps(record), file=self._file, flush=True)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with suppress(OSError):  # told already
                self._file.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"{self._path}: {error.strerror}; give another --failures") from error
