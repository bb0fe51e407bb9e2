"""Lists of pairs: what is read, what is refused, what is made."""

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sekd_cli.errors import InputFileError
from sekd_cli.pairs import exhaustive, format_pair, natural_order, parse_pairs, read_pairs, sequential, split_queries


def parsed(text: bytes) -> list[tuple[str, str]]:
    return list(parse_pairs(io.BytesIO(text), "list"))


def test_names_are_split_on_a_tab_or_else_on_white_space() -> None:
    assert parsed(b"a.jpg b.jpg\n") == [("a.jpg", "b.jpg")]
    assert parsed(b"  a.jpg   b.jpg  ") == [("a.jpg", "b.jpg")]
    assert parsed(b"my cat.jpg\this dog.jpg\n") == [("my cat.jpg", "his dog.jpg")]
    assert parsed(b" a \t b \n") == [(" a ", " b ")]


def test_blank_lines_and_comments_are_skipped_whatever_the_line_ends() -> None:
    text = b"\xef\xbb\xbf# by hand\r\n\r\n   \r\n\t\r\na b\r\n#c d\nc d"
    assert parsed(text) == [("a", "b"), ("c", "d")]


def test_lists_with_marks_of_utf8_may_be_put_together() -> None:
    assert parsed(b"\xef\xbb\xbfa b\n\xef\xbb\xbf# more\n\xef\xbb\xbfc d\n") == [("a", "b"), ("c", "d")]
    assert parsed(format_pair(("\ufeffa", "b")).encode()) == [("\ufeffa", "b")]


def test_white_space_of_other_scripts_is_part_of_a_name() -> None:
    assert parsed("Bild\u202f1.jpg Bild\u00a02.jpg".encode()) == [("Bild\u202f1.jpg", "Bild\u00a02.jpg")]


def test_a_dot_and_slash_before_a_name_change_nothing() -> None:
    assert parsed(b"./a/b.jpg ./#1.jpg") == [("a/b.jpg", "#1.jpg")]


def test_names_may_hold_bytes_that_are_no_text() -> None:
    assert parsed(b"a\xff.jpg b.jpg") == [("a\udcff.jpg", "b.jpg")]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"a b\nonly-one\n", r"line 2: 'only-one' is 1 name, not two"),
        (b"a.jpg,b.jpg", r"line 1: 'a.jpg,b.jpg' is 1 name, not two; put a space or a tab between the two"),
        ("a b\n".encode("utf-16"), r"line 1: not UTF-8 text; save it as UTF-8"),
        (b"a b c", r"line 1: 'a b c' is 3 names, not two; put a tab"),
        (b"a\tb\tc", r"line 1: .* one tab"),
        (b"a\t", r"line 1: .* one tab"),
        (b"\tb", r"line 1: .* one tab"),
        (b"./ b", r"line 1"),
        (b"a b\n\x89HDF\r\n\x1a\n\0\0", r"line 4: not UTF-8 text|line 3: not UTF-8 text|line 2: "),
        (b"x" * 100_000, r"line 1: 'x{50,60}\.\.\.' is 1 name"),
    ],
)
def test_a_line_of_anything_else_is_named(text: bytes, complaint: str) -> None:
    with pytest.raises(InputFileError, match=complaint) as caught:
        parsed(text)
    assert str(caught.value).startswith("list, line")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@given(st.binary(max_size=300))
def test_any_bytes_are_pairs_or_one_clear_error(content: bytes) -> None:
    try:
        pairs = parsed(content)
    except InputFileError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either outcome is right
    else:
        assert all(len(pair) == 2 and all(pair) for pair in pairs)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match=r"no\.txt.*No such file"):
        list(read_pairs(tmp_path / "no.txt"))
    with pytest.raises(InputFileError, match="directory"):
        list(read_pairs(tmp_path))


def test_a_file_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text("a b\nc\n")
    with pytest.raises(InputFileError, match=r"pairs\.txt, line 2"):
        list(read_pairs(tmp_path / "pairs.txt"))


def test_a_dash_is_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a b\n")))
    assert list(read_pairs("-")) == [("a", "b")]


NAMES = st.text(st.characters(exclude_characters="\t\n\r\0", exclude_categories=("Cs",)), min_size=1).filter(
    lambda name: not name.startswith("./")
)


@given(st.lists(st.tuples(NAMES, NAMES)))
def test_what_is_written_is_read_again(pairs: list[tuple[str, str]]) -> None:
    assert parsed("".join(map(format_pair, pairs)).encode()) == pairs


@pytest.mark.parametrize("name", ["a\tb", "a\nb", "a\rb", "a\0b", ""])
def test_names_that_no_line_can_hold_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="rename"):
        format_pair(("a", name))


def test_numbers_in_names_are_sorted_by_value() -> None:
    names = ["f10.jpg", "f9.jpg", "f09.jpg", "e11.jpg", "f9a2.jpg", "f9a10.jpg", "10", "9", "x" + "9" * 5000]
    expected = ["9", "10", "e11.jpg", "f09.jpg", "f9.jpg", "f9a2.jpg", "f9a10.jpg", "f10.jpg", "x" + "9" * 5000]
    assert natural_order(names) == natural_order(reversed(names)) == expected


def test_exhaustive_pairs_are_all_of_two_different_images() -> None:
    assert list(exhaustive(["c", "a", "b", "a"])) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert list(exhaustive(["a"])) == []


def test_sequential_pairs_are_neighbours() -> None:
    names = ["f10", "f8", "f9", "f11", "f9"]
    assert list(sequential(names, 1)) == [("f8", "f9"), ("f9", "f10"), ("f10", "f11")]
    assert list(sequential(names, 1, loop=True))[3:] == [("f11", "f8")]
    assert list(sequential(names, 2)) == [("f8", "f9"), ("f8", "f10"), ("f9", "f10"), ("f9", "f11"), ("f10", "f11")]


def test_queries_are_the_images_whose_names_fit_a_pattern() -> None:
    names = ["new/10.jpg", "new/sub/x.png", "old/new/1.jpg", "new/9.jpg", "New/1.jpg", "new/9.jpg"]
    fitting, others = ["new/9.jpg", "new/10.jpg", "new/sub/x.png"], ["New/1.jpg", "old/new/1.jpg"]
    assert split_queries(names, ["new/*"]) == (fitting, others)
    assert split_queries(names, ["new/?.jpg", "*.png"]) == (
        ["new/9.jpg", "new/sub/x.png"],
        ["New/1.jpg", "new/10.jpg", "old/new/1.jpg"],
    )
    assert split_queries(names, []) == ([], natural_order(set(names)))


@given(st.integers(0, 12), st.integers(1, 15))
def test_a_loop_gives_each_image_as_many_neighbours_and_no_pair_twice(count: int, overlap: int) -> None:
    pairs = list(sequential([f"f{index}" for index in range(count)], overlap, loop=True))
    assert len({frozenset(pair) for pair in pairs}) == len(pairs)
    neighbours = min(2 * overlap, count - 1)
    for index in range(count):
        assert sum(f"f{index}" in pair for pair in pairs) == neighbours


def test_a_feature_file_is_no_list() -> None:
    with pytest.raises(InputFileError, match="an HDF5 file; give a list of pairs"):
        list(parse_pairs([b"\x89HDF\r\n", b"\x1a\n"], "feats.h5"))


def test_a_tab_separates_only_names_that_hold_spaces() -> None:
    assert format_pair(("a", "b/c.jpg")) == "a b/c.jpg\n"  # COLMAP takes nothing else
    assert format_pair(("a 1", "b")) == "a 1\tb\n"
