"""How far COLMAP has come with a database, seen by a process of its own.

COLMAP's calls return when all is done, and until then only the tables' growth tells. SQLite's locks belong to a
process: were the database opened here by Python's SQLite, closing it would give back those that COLMAP's own holds.
"""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Self
from urllib.parse import quote

from sekd_cli.workers import CAN_FORK, Worker, WorkerDiedError

EVERY = 1.0  # seconds
REST = 20  # times as long as looking took: large tables are looked at more seldom


class _Table(NamedTuple):
    database: Path
    name: str


class Watch:
    """Looks at databases from another process; sees nothing where none can be forked."""

    def __init__(self) -> None:
        self._worker: Worker[_Table, int] | None = None
        if CAN_FORK:
            with suppress(OSError):  # there may be no more processes
                self._worker = Worker(_rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._worker is not None:
            self._worker.stop()

    @contextmanager
    def growth(self, database: Path, table: str, tell: Callable[[int], None]) -> Iterator[None]:
        """While the block runs, `tell` in another thread, time and again, how many rows a table has; 0 at first."""
        ended = threading.Event()

        def look(worker: Worker[_Table, int]) -> None:
            pause = EVERY
            while not ended.wait(pause):
                start = time.monotonic()
                try:
                    tell(worker(_Table(database, table)))
                except WorkerDiedError:
                    return
                pause = max(EVERY, REST * (time.monotonic() - start))

        tell(0)
        if self._worker is None:
            yield
            return
        thread = threading.Thread(target=look, args=(self._worker,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _rows(table: _Table) -> int:
    """Rows of a table, as far as they are to be seen; 0 where the database, or the table, isn't there yet."""
    address = f"file:{quote(bytes(table.database))}?mode=ro"
    try:
        with closing(sqlite3.connect(address, uri=True, timeout=EVERY)) as database:
            found = database.execute(f'SELECT COUNT(*) FROM "{table.name}"').fetchone()
    except sqlite3.Error:
        return 0
    return int(found[0])
