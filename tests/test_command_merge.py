"""`sekd merge` as a user types it, and what it refuses."""

import json
import resource
from contextlib import suppress
from itertools import combinations
from pathlib import Path

import h5py
import numpy as np
import pytest
from drawn_features import drawn_features, write_views

from sekd_cli import cli
from sekd_cli.errors import InputFileError, UsageError
from sekd_cli.feature_file import FeatureReader, FeatureWriter, file_attributes
from sekd_cli.match_file import MatchReader
from sekd_cli.merging import Merged, merge
from sekd_cli.stored_features import Source

NAMES = ["a.jpg", "b/b 1.jpg", "c.jpg", "d.jpg", "e.jpg"]
WHOLE = Path("all.h5")
USAGE, NOTHING, BAD_INPUT, BAD_OUTPUT = 2, 3, 4, 5  # exit codes


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_shard(number: int, count: int, *, weights: str = "ab", **settings: int) -> Path:
    """The feature file of one shard of `NAMES`, as `sekd extract --shard` leaves it."""
    path = Path(f"feats.{number}.h5")
    everything = {"max_keypoints": 2048, "shard": f"{number}/{count}", **settings}
    attributes = file_attributes(network="compact", weights_sha256=weights * 32, settings=everything)
    with FeatureWriter(path, attributes, overwrite=True) as writer:
        for name in NAMES[number - 1 :: count]:
            view = NAMES.index(name)
            source = Source(100 + view, 7)
            writer.write(name, drawn_features(view), source=source, descriptor_dtype="float16")
    return path


def leave_incomplete(path: Path, name: str) -> None:
    with h5py.File(path, "r+") as file:
        del file[name].attrs["complete"]


def test_three_shards_become_one_file(capfd: pytest.CaptureFixture[str]) -> None:
    shards = [str(write_shard(number, 3)) for number in (1, 2, 3)]
    assert cli.main(["merge", *shards, "-o", "all.h5"]) == 0
    out, err = capfd.readouterr()
    assert out == "all.h5\n"
    assert err == "5 images of 3 files\n"
    with FeatureReader(WHOLE) as reader:
        assert reader.names() == NAMES
        for view, name in enumerate(NAMES):
            np.testing.assert_array_equal(reader.read(name).keypoints, drawn_features(view).keypoints)
    with h5py.File(WHOLE) as file:
        assert file["b/b 1.jpg/descriptors"].dtype == np.float16
        assert file["b/b 1.jpg"].attrs["source"].tolist() == [101, 7, -1, -1]


def test_a_run_without_shards_goes_on_with_the_whole() -> None:
    merge([write_shard(number, 2) for number in (2, 1)], WHOLE)
    settings = {"max_keypoints": 2048, "shard": "1/1"}
    attributes = file_attributes(network="compact", weights_sha256="ab" * 32, settings=settings)
    with FeatureWriter(WHOLE, attributes) as writer:
        assert all(writer.is_complete(name, Source(100 + view, 7)) for view, name in enumerate(NAMES))
        writer.write("f.jpg", drawn_features(5))
    with FeatureReader(WHOLE) as reader:
        assert reader.names() == [*NAMES, "f.jpg"]


def test_more_shards_are_joined_than_a_process_may_have_open() -> None:
    shards = [write_shard(number, 30) for number in range(1, 31)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(open_now.name) for open_now in Path("/dev/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, hard))
    try:
        assert merge(shards, WHOLE).items == len(NAMES)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_missing_shards_are_named_and_can_be_done_without(capfd: pytest.CaptureFixture[str]) -> None:
    shards = [str(write_shard(number, 5)) for number in (2, 4)]
    assert cli.main(["merge", *shards, "-o", "all.h5"]) == USAGE
    assert "missing: shard 1/5, 3/5, 5/5" in capfd.readouterr().err
    assert not WHOLE.exists()
    assert cli.main(["merge", *shards, "-o", "all.h5", "--partial"]) == 0
    assert "warning: missing: shard 1/5, 3/5, 5/5" in capfd.readouterr().err
    with FeatureReader(WHOLE) as reader:
        assert reader.names() == [NAMES[1], NAMES[3]]


def test_a_shard_given_twice_is_refused() -> None:
    first, second = write_shard(1, 2), write_shard(2, 2)
    with pytest.raises(UsageError, match=r"feats\.2\.h5 and feats\.2\.h5 are both shard 2/2"):
        merge([first, second, second], WHOLE)
    copy = Path("copy.h5")
    copy.write_bytes(first.read_bytes())
    with pytest.raises(UsageError, match=r"feats\.1\.h5 and copy\.h5 are both shard 1/2"):
        merge([first, copy], WHOLE)


def test_shards_of_different_runs_are_refused() -> None:
    first = write_shard(1, 2)
    with pytest.raises(UsageError, match=r"feats\.1\.h5 is shard 1/2, feats\.2\.h5 shard 2/3"):
        merge([first, write_shard(2, 3)], WHOLE)
    with pytest.raises(
        InputFileError, match=r"feats\.1\.h5 and feats\.2\.h5 were made differently \(weights_sha256 ab"
    ):
        merge([first, write_shard(2, 2, weights="cd")], WHOLE)
    with pytest.raises(InputFileError, match=r"\(max_keypoints 2048 and 100\)"):
        merge([first, write_shard(2, 2, max_keypoints=100)], WHOLE)
    more = write_shard(2, 2, rotations=1)  # a setting that the other was made without
    for both in ([first, more], [more, first]):
        with pytest.raises(InputFileError, match=r"\(rotations "):
            merge(both, WHOLE)
    assert not WHOLE.exists()


def test_runs_over_different_folders_are_joined() -> None:
    one, other = write_views(Path("one.h5"), NAMES[:2]), write_views(Path("other.h5"), NAMES[2:])
    told: list[bool] = []
    assert merge([one, other], WHOLE, advance=lambda: told.append(True)) == Merged("features", 5, 0, 0)
    assert len(told) == 5


def test_an_image_in_two_files_must_be_the_same_in_both(caplog: pytest.LogCaptureFixture) -> None:
    one = write_views(Path("one.h5"), NAMES[:2])
    two = write_views(Path("two.h5"), NAMES[:3])
    assert merge([one, two], WHOLE) == Merged("features", 3, 2, 0)
    cli.main(["merge", str(one), str(two), "-o", "again.h5"])
    assert "2 images in several files, the same" in caplog.text
    with h5py.File(two, "r+") as file:
        file[NAMES[1]]["scores"][3] = 0.123
    with pytest.raises(InputFileError, match=r"b/b 1\.jpg differs in one\.h5 and two\.h5"):
        merge([one, two], Path("other.h5"))
    assert not Path("other.h5").exists()


def test_incomplete_groups_stay_out_and_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    shards = [write_shard(1, 2), write_shard(2, 2)]
    leave_incomplete(shards[0], NAMES[2])
    assert cli.main(["merge", *map(str, shards), "-o", "all.h5"]) == 0
    assert "1 image left out as incomplete" in caplog.text
    with FeatureReader(WHOLE) as reader:
        assert reader.names() == [name for name in NAMES if name != NAMES[2]]
    with h5py.File(WHOLE) as file:
        assert NAMES[2] not in file


def test_a_shard_with_fewer_images_than_it_was_dealt_is_told(caplog: pytest.LogCaptureFixture) -> None:
    shards = [write_shard(1, 2), write_shard(2, 2)]  # 3 and 2 images: as they were dealt
    assert cli.main(["merge", *map(str, shards), "-o", "all.h5"]) == 0
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    with h5py.File(shards[1], "r+") as file:
        del file[NAMES[1]]  # as its run was killed before
    assert cli.main(["merge", *map(str, shards), "-o", "all.h5", "--overwrite"]) == 0
    assert "feats.2.h5 has 1 image, another shard 3: its run hasn't ended, or some failed" in caplog.text


def test_an_image_that_one_file_has_whole_and_another_half_is_taken_whole() -> None:
    one, two = write_views(Path("one.h5"), NAMES[:1]), write_views(Path("two.h5"), NAMES[:1])
    leave_incomplete(one, NAMES[0])
    assert merge([one, two], WHOLE) == Merged("features", 1, 0, 1)


def test_images_whose_names_are_turned_about_are_two() -> None:
    one, two = write_views(Path("1.h5"), ["x/y"]), write_views(Path("2.h5"), ["y/x"])
    assert merge([one, two], WHOLE) == Merged("features", 2, 0, 0)


def test_match_files_are_joined_too() -> None:
    write_views(Path("feats.h5"), NAMES[:3])
    pairs = list(combinations(NAMES[:3], 2))
    for index, pair in enumerate(pairs):
        Path("pairs.txt").write_text("\t".join(pair), encoding="utf-8")
        arguments = ["match", "pairs.txt", "-o", f"m{index}.h5", "--verify", "homography", "--quiet", "--device", "cpu"]
        assert cli.main(arguments) == 0
    assert merge([Path(f"m{index}.h5") for index in range(3)], WHOLE) == Merged("matches", 3, 0, 0)
    with MatchReader(WHOLE) as whole, MatchReader(Path("m1.h5")) as part:
        assert sorted(whole.pairs()) == sorted(pairs)
        ours, theirs = whole.read(pairs[1]), part.read(pairs[1])
        np.testing.assert_array_equal(ours.matches0, theirs.matches0)
        np.testing.assert_array_equal(ours.scores0, theirs.scores0)
        assert ours.model_name == "homography"
    Path("pairs.txt").write_text("".join("\t".join(pair) + "\n" for pair in pairs), encoding="utf-8")
    again = ["match", "pairs.txt", "-o", "all.h5", "--verify", "homography", "--quiet", "--device", "cpu"]
    before = WHOLE.read_bytes()
    assert cli.main(again) == 0
    assert WHOLE.read_bytes() == before  # nothing was left to match


def test_a_pair_that_comes_again_the_other_way_round_is_taken_once(caplog: pytest.LogCaptureFixture) -> None:
    write_views(Path("feats.h5"), NAMES[:2])
    for number, pair in ((1, NAMES[:2]), (2, NAMES[1::-1])):
        Path("pairs.txt").write_text("\t".join(pair), encoding="utf-8")
        assert cli.main(["match", "pairs.txt", "-o", f"m{number}.h5", "--quiet", "--device", "cpu"]) == 0
    assert cli.main(["merge", "m1.h5", "m2.h5", "m2.h5", "-o", "all.h5"]) == 0
    assert "2 pairs came before the other way round, left out" in caplog.text
    with MatchReader(WHOLE) as whole:
        assert list(whole.pairs()) == [tuple(NAMES[:2])]


def test_matches_of_other_features_are_refused() -> None:
    for index, weights in enumerate(("ab", "cd")):
        with h5py.File(f"m{index}.h5", "w") as file:
            file.attrs.update({"sekd_schema": 1, "content": "matches", "settings": "{}"})
            file.attrs["features"] = json.dumps({"weights_sha256": weights * 32})
    with pytest.raises(InputFileError, match="made differently"):
        merge([Path("m0.h5"), Path("m1.h5")], WHOLE)


def test_features_and_matches_are_not_joined() -> None:
    features = write_views(Path("feats.h5"), NAMES[:2])
    with h5py.File("matches.h5", "w") as file:
        file["a/b/matches0"] = [0]
    with pytest.raises(UsageError, match=r"feats\.h5 holds features, matches\.h5 matches"):
        merge([features, Path("matches.h5")], WHOLE)
    with h5py.File("keypoints.h5", "w") as file:
        file["a"] = np.zeros((3, 2))
    with pytest.raises(UsageError, match="convert --to hloc"):
        merge([Path("keypoints.h5"), features], WHOLE)


def test_files_of_other_tools_are_joined() -> None:
    for name in ("one", "two"):
        with h5py.File(f"{name}.h5", "w") as file:
            file[f"{name}.jpg/keypoints"], file[f"{name}.jpg/descriptors"] = np.zeros((2, 2)), np.zeros((8, 2))
            file["half.jpg/keypoints"] = np.zeros((2, 2))
    assert merge([Path("one.h5"), Path("two.h5")], WHOLE) == Merged("features", 2, 0, 2)
    with FeatureReader(WHOLE) as reader:
        assert reader.names() == ["one.jpg", "two.jpg"]
    with h5py.File(WHOLE) as file:
        assert not file.attrs  # it is no more ours than they are


def test_links_of_another_tool_are_joined_as_what_they_lead_to() -> None:
    with h5py.File("stored.h5", "w") as file:
        file["descriptors"] = np.ones((8, 2))
    with h5py.File("linked.h5", "w") as file:
        file["stored/keypoints"] = np.ones((2, 2))
        file["a.jpg/keypoints"] = h5py.SoftLink("/stored/keypoints")
        file["a.jpg/descriptors"] = h5py.ExternalLink("stored.h5", "/descriptors")
        file["a.jpg/nothing"] = h5py.SoftLink("/nowhere")
    assert merge([Path("linked.h5")], WHOLE).items == 1
    Path("stored.h5").unlink()
    with FeatureReader(WHOLE) as reader:
        assert reader.read("a.jpg").descriptors.tolist() == np.ones((2, 8)).tolist()


def test_compressed_features_of_the_newest_version_of_hdf5_are_joined() -> None:
    with h5py.File("newest.h5", "w", libver="latest") as file:  # as hloc opens its files
        for name, shape in (("keypoints", (2, 2)), ("descriptors", (8, 2))):
            file.create_dataset(f"a.jpg/{name}", data=np.ones(shape), compression="gzip")
    assert merge([Path("newest.h5")], WHOLE).items == 1
    with FeatureReader(WHOLE) as reader:
        assert reader.read("a.jpg").keypoints.tolist() == np.ones((2, 2)).tolist()


def test_an_image_of_another_tool_may_come_again_whatever_else_it_holds() -> None:
    for name, inner in (("one", 1), ("two", 1), ("three", 2)):
        with h5py.File(f"{name}.h5", "w") as file:
            file["a.jpg/keypoints"], file["a.jpg/descriptors"] = np.zeros((2, 2)), np.full((8, 2), np.nan)
            file["a.jpg/lines/ends"], file["a.jpg/note"] = inner, "of another tool"
    assert merge([Path("one.h5"), Path("two.h5")], WHOLE) == Merged("features", 1, 1, 0)
    with h5py.File("four.h5", "w") as file:
        file["a.jpg/keypoints"], file["a.jpg/descriptors"] = np.zeros((2, 2)), np.full((8, 2), np.nan)
        file["a.jpg/lines"], file["a.jpg/note"] = 1, "of another tool"  # where the others have a group
    for one, other in (("one", "three"), ("one", "four"), ("four", "one")):
        with pytest.raises(InputFileError, match=f"a.jpg differs in {one}.h5 and {other}.h5"):
            merge([Path(f"{one}.h5"), Path(f"{other}.h5")], WHOLE, overwrite=True)


def test_nothing_is_overwritten_by_mistake(capfd: pytest.CaptureFixture[str]) -> None:
    shards = [str(write_shard(number, 2)) for number in (1, 2)]
    before = [Path(shard).read_bytes() for shard in shards]
    Path("link.h5").symlink_to(shards[0])
    for output in (shards[0], "link.h5"):
        assert cli.main(["merge", *shards, "-o", output, "--overwrite"]) == USAGE
        assert "is an input too" in capfd.readouterr().err
    assert [Path(shard).read_bytes() for shard in shards] == before
    WHOLE.write_bytes(b"precious")
    assert cli.main(["merge", *shards, "-o", "all.h5"]) == BAD_OUTPUT
    assert WHOLE.read_bytes() == b"precious"
    assert cli.main(["merge", *shards, "-o", "all.h5", "--overwrite"]) == 0


def test_missing_and_damaged_files_are_named(capfd: pytest.CaptureFixture[str]) -> None:
    whole = write_shard(1, 2)
    assert cli.main(["merge", str(whole), "gone.h5", "-o", "all.h5"]) == BAD_INPUT
    assert "gone.h5: no such file" in capfd.readouterr().err
    content = write_shard(2, 2).read_bytes()
    for cut in range(1, 10):
        Path("cut.h5").write_bytes(content[: len(content) * cut // 10])
        assert cli.main(["merge", str(whole), "cut.h5", "-o", "all.h5"]) == BAD_INPUT
        err = capfd.readouterr().err
        assert err.startswith("error: cut.h5: ")
        assert len(err.splitlines()) == 1
    assert not WHOLE.exists()
    WHOLE.write_bytes(b"old")  # where there is an output, a missing input is told as well
    assert cli.main(["merge", "gone.h5", "-o", "all.h5", "--overwrite"]) == BAD_INPUT
    assert "gone.h5: no such file" in capfd.readouterr().err


def test_bytes_overwritten_in_the_middle_are_damage_to_that_file() -> None:
    told = []
    whole, content = write_shard(1, 2), write_shard(2, 2).read_bytes()
    for start in range(100, len(content) - 400, len(content) // 25):
        damaged = bytearray(content)
        damaged[start : start + 300] = b"\xff" * 300
        Path("damaged.h5").write_bytes(damaged)
        with suppress(UsageError):  # where the shard's number is what was hit
            try:
                merge([whole, Path("damaged.h5")], WHOLE, overwrite=True, partial=True)
            except InputFileError as error:
                told.append(str(error))
    assert told
    assert all("damaged.h5" in message for message in told)  # and nothing else was raised


@pytest.mark.parametrize("inside", ["x.jpg/y.jpg", "x.jpg/deep/y.jpg"])
def test_an_image_where_another_file_has_a_folder_is_refused(inside: str, capfd: pytest.CaptureFixture[str]) -> None:
    image, folder = write_views(Path("1.h5"), ["x.jpg"]), write_views(Path("2.h5"), [inside])
    for both in ((image, folder), (folder, image)):
        assert cli.main(["merge", *map(str, both), "-o", "all.h5"]) == BAD_INPUT
        assert "one is an image where the other has a folder; extract with --root" in capfd.readouterr().err
    assert not WHOLE.exists()


def test_what_holds_nothing_complete_is_not_merged(capfd: pytest.CaptureFixture[str]) -> None:
    one = write_views(Path("one.h5"), NAMES[:1])
    leave_incomplete(one, NAMES[0])
    assert cli.main(["merge", "one.h5", "-o", "all.h5"]) == NOTHING
    assert "no complete features in any file" in capfd.readouterr().err
    with h5py.File("kaggle.h5", "w") as file:
        file["a.jpg/b.jpg"] = np.zeros((3, 2), np.int32)
    assert cli.main(["merge", "kaggle.h5", "-o", "all.h5"]) == USAGE
    assert "not in hloc's layout" in capfd.readouterr().err
    assert not WHOLE.exists()


def test_the_last_of_many_shards_is_compared_too() -> None:
    shards = [write_shard(1, 3), write_shard(2, 3), write_shard(3, 3, max_keypoints=100)]
    with pytest.raises(InputFileError, match=r"feats\.1\.h5 and feats\.3\.h5 were made differently"):
        merge(shards, WHOLE)


def test_shards_of_another_schema_are_refused() -> None:
    first, second = write_shard(1, 2), write_shard(2, 2)
    with h5py.File(second, "r+") as file:
        file.attrs["sekd_schema"] = 99
    with pytest.raises(InputFileError, match="sekd_schema"):
        merge([first, second], WHOLE)


def test_an_image_with_more_in_one_file_than_in_the_other_differs() -> None:
    for name, parts in (("one", ["keypoints", "descriptors"]), ("two", ["keypoints", "descriptors", "scores"])):
        with h5py.File(f"{name}.h5", "w") as file:
            for part in parts:
                file[f"a.jpg/{part}"] = np.zeros((8, 8))
    with pytest.raises(InputFileError, match=r"a\.jpg differs in one\.h5 and two\.h5"):
        merge([Path("one.h5"), Path("two.h5")], WHOLE)


def test_merged_pairs_are_called_pairs(capfd: pytest.CaptureFixture[str]) -> None:
    with h5py.File("m.h5", "w") as file:
        file["a.jpg/b.jpg/matches0"] = [0]
    assert cli.main(["merge", "m.h5", "-o", "all.h5"]) == 0
    assert capfd.readouterr().err == "1 pair of 1 file\n"


def test_a_shard_that_can_not_be_looked_up_is_an_input_that_can_not_be_read(capfd: pytest.CaptureFixture[str]) -> None:
    """As in another's closed folder."""
    assert cli.main(["merge", "z" * 300, "-o", "all.h5"]) == BAD_INPUT
    assert f"{'z' * 300}: not readable" in capfd.readouterr().err
