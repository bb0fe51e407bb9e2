"""One part of the work of many processes: `--shard 2/4`, or a rank of torchrun."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from sekd_cli.errors import UsageError

LONGEST_WAIT = timedelta(days=365)  # for other ranks; torchrun ends it where one of them dies
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
    decimal = number.isdecimal() and count.isdecimal() and len(text) < 100  # of thousands of digits Python makes none
    if not (slash and decimal and 1 <= int(number) <= int(count)):
        raise UsageError(f"--shard {text}: give I/N with I from 1 to N, such as 1/4, 2/4, 3/4 and 4/4")
    return Shard(int(number), int(count))


def torchrun_shard(environment: Mapping[str, str] = os.environ) -> Shard | None:
    """The part of a process that torchrun started beside others."""
    if "TORCHELASTIC_RUN_ID" not in environment or int(environment.get("WORLD_SIZE", "1")) == 1:
        return None
    return Shard(int(environment["RANK"]) + 1, int(environment["WORLD_SIZE"]))


def wait_for_other_ranks(environment: Mapping[str, str] = os.environ) -> None:
    """Return when every process of this torchrun has come here; at once without torchrun.

    As soon as one process ends with an exit code torchrun kills those that are still at work, and a damaged photograph
    is an exit code.
    """
    shard = torchrun_shard(environment)
    if shard is None:
        return
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # noqa: PLC0415 - loads torch; not in its types

    store = TCPStore(environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), is_master=False)
    attempt = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
    store.set(f"sekd/{attempt}/{shard.number}", "done")
    store.wait([f"sekd/{attempt}/{number + 1}" for number in range(shard.count)], LONGEST_WAIT)
