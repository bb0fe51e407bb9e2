"""Numbers of things in messages."""

import pytest

from sekd_cli.counting import counted


@pytest.mark.parametrize(
    ("count", "thing", "told"),
    [(0, "image", "0 images"), (1, "match", "1 match"), (2, "match", "2 matches"), (1234, "pair", "1,234 pairs")],
)
def test_one_is_told_as_one_and_others_as_several(count: int, thing: str, told: str) -> None:
    assert counted(count, thing) == told
