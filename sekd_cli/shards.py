"""One part of the work of many processes: `--shard 2/4`, or a rank of torchrun."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sekd_cli.errors import UsageError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Shard:
    """Part `number` of `count`, counted from 1."""

    number: int = 1
    count: int = 1

    def part_of(self, items: Sequence[Item]) -> list[Item]:
        """Every count-th item: all parts together are all items, and none is in two."""
        return list(items[self.number - 1 :: self.count])

    def own_path(self, path: Path) -> Path:
        """A path that no other shard has: `feats.h5` becomes `feats.2-of-4.h5`."""
        return path.with_name(f"{path.stem}.{self.number}-of-{self.count}{path.suffix}")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def parse_shard(text: str) -> Shard:
    """`2/4` is the second of four. Raises UsageError."""
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UsageError(f"--shard {text}: give I/N with I from 1 to N, such as 1/4, 2/4, 3/4 and 4/4")
    return Shard(int(number), int(count))


def torchrun_shard(environment: Mapping[str, str] = os.environ) -> Shard | None:
    """The part of a process that torchrun started beside others."""
    if "TORCHELASTIC_RUN_ID" not in environment or int(environment.get("WORLD_SIZE", "1")) == 1:
        return None
    return Shard(int(environment["RANK"]) + 1, int(environment["WORLD_SIZE"]))
