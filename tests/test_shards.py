from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import DistStoreError, TCPStore

from sekd_cli.errors import UsageError
from sekd_cli.shards import Shard, parse_shard, torchrun_shard, wait_for_other_ranks


@pytest.mark.parametrize("count", [1, 2, 3, 7, 20])
def test_all_shards_together_are_all_items_and_none_is_in_two(count: int) -> None:
    items = list(range(10))
    parts = [Shard(number, count).part_of(items) for number in range(1, count + 1)]
    assert sorted(item for part in parts for item in part) == items
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_shards_count_from_one() -> None:
    assert parse_shard("2/4") == Shard(2, 4)
    assert str(Shard(2, 4)) == "2/4"
    assert Shard(2, 4).part_of("abcdefg") == ["b", "f"]


@pytest.mark.parametrize("text", ["0/4", "5/4", "4", "1/0", "a/b", "-1/4", "1/4/2", "", "1.5/2"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="give I/N with I from 1 to N"):
        parse_shard(text)


def test_ranks_of_torchrun_are_shards_with_files_of_their_own() -> None:
    environment = {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "4"}
    shard = torchrun_shard(environment)
    assert shard == Shard(2, 4)
    assert shard.own_path(Path("out/feats.h5")) == Path("out/feats.2-of-4.h5")
    assert torchrun_shard(environment | {"WORLD_SIZE": "1"}) is None
    assert torchrun_shard({"RANK": "1", "WORLD_SIZE": "4"}) is None, "another launcher's variables"


def test_a_rank_that_is_done_waits_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or torchrun would kill them for its exit code."""
    store = TCPStore("localhost", 0, is_master=True)
    shared = {
        "TORCHELASTIC_RUN_ID": "x",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(store.port),
    }
    with ThreadPoolExecutor() as pool:
        first = pool.submit(wait_for_other_ranks, shared | {"RANK": "0"})
        store.wait(["sekd/0/1"])
        pool.submit(wait_for_other_ranks, shared | {"RANK": "1"}).result(timeout=60)
        first.result(timeout=60)
    wait_for_other_ranks({})
    monkeypatch.setattr("sekd_cli.shards.LONGEST_WAIT", timedelta(milliseconds=1))
    with pytest.raises(DistStoreError):  # another attempt, of which the second hasn't come
        wait_for_other_ranks(shared | {"RANK": "0", "TORCHELASTIC_RESTART_COUNT": "1"})
