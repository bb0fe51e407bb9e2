"""Matches on their way into the file: written as they come, told of when they are durable."""

import time
from collections.abc import Iterator
from typing import NamedTuple

from sekd_cli.match_file import ChangedFeaturesError, MatchWriter
from sekd_cli.pairs import Pair
from sekd_cli.stored_matches import StoredMatches

COMMIT_PAIRS, COMMIT_SECONDS = 64, 1.0  # matches are made durable, and reported, after so many or so long


class Outcome(NamedTuple):
    """What became of a pair: its matches are in the file (now, or before), or why they are not."""

    pair: Pair
    matches: int = 0
    aligned: int = 0  # of the matches
    skipped: bool = False  # was there before
    failure: str | None = None


class Matched(NamedTuple):
    """The matches of a pair and the fingerprints of what was matched, or why there are none."""

    pair: Pair
    matches: StoredMatches | None
    fingerprints: tuple[int, int] = (0, 0)
    failure: str = ""


def is_done(writer: MatchWriter, pair: Pair, fingerprints: tuple[int, int], update: bool) -> bool:
    """Whether the matches of a pair are there; those of other features raise ChangedFeaturesError, unless `update`."""
    try:
        return writer.is_complete(pair, fingerprints)
    except ChangedFeaturesError:
        if not update:
            raise
    return False


class Written:
    """Pairs on their way into the file, reported when they are durable."""

    def __init__(self, writer: MatchWriter) -> None:
        self._writer = writer
        self._outcomes: list[Outcome] = []
        self._committed = time.monotonic()

    def add(self, outcome: Outcome) -> None:
        """Report an outcome once everything before it is durable."""
        self._outcomes.append(outcome)

    def take(self, one: Matched) -> None:
        """Write the matches of a pair."""
        if one.matches is None:
            self.add(Outcome(one.pair, failure=one.failure))
            return
        self._writer.write(one.pair, one.matches, one.fingerprints)
        alignment = one.matches.alignment
        aligned = 0 if alignment is None else int((alignment.correlations > 0).sum())
        self.add(Outcome(one.pair, int((one.matches.matches0 >= 0).sum()), aligned))

    def reported(self, *, now: bool = False) -> Iterator[Outcome]:
        """Outcomes that are durable: none until it is time to commit, or `now`."""
        if now or len(self._outcomes) >= COMMIT_PAIRS or time.monotonic() > self._committed + COMMIT_SECONDS:
            self._writer.commit()
            self._committed = time.monotonic()
            outcomes, self._outcomes = self._outcomes, []
            yield from outcomes
