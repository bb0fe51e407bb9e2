"""Lists of what failed, as JSON lines."""

import json
from pathlib import Path

import pytest

from sekd_cli.commands.failure_list import FailureList, same_file
from sekd_cli.errors import OutputError


def test_a_line_is_there_as_soon_as_a_thing_failed_and_an_older_list_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "failed.jsonl"
    for names in (["a", "b"], ["\udcff"]):  # the last: a name that is no UTF-8
        failures = FailureList(path)
        for count, name in enumerate(names, start=1):
            failures.add({"image": name})
            lines = path.read_text(encoding="utf-8").splitlines()
            assert [json.loads(line)["image"] for line in lines] == names[:count]
        failures.close()


def test_without_a_path_nothing_is_listed() -> None:
    failures = FailureList(None)
    failures.add({"image": "a"})
    failures.close()


def test_where_no_list_can_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"Not a directory; give another --failures"):
        FailureList(tmp_path / "file" / "failed.jsonl")


def test_a_file_is_the_same_by_whatever_path_and_though_it_is_not_there_yet(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    one, other = tmp_path / "folder" / "a", tmp_path / "link" / "a"
    assert same_file(one, other)
    one.touch()
    assert same_file(one, other)
    (tmp_path / "hard").hardlink_to(one)
    assert same_file(tmp_path / "hard", other)
    assert not same_file(one, tmp_path / "folder" / "b")
    assert not same_file(one, tmp_path / ("z" * 300))  # which can't be looked up
