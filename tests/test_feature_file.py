import contextlib
import os
import shutil
import zlib
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from drawn_features import ATTRIBUTES
from hypothesis import given, settings
from hypothesis import strategies as st

from sekd_cli.errors import ImageError, InputFileError, OutputError
from sekd_cli.feature_file import ChangedImageError, FeatureReader, FeatureWriter, file_attributes, name_of
from sekd_cli.stored_features import Source, StoredFeatures, source_of


def features(count: int = 5, seed: int = 0, scales: bool = True) -> StoredFeatures:
    """Random numbers of the right shapes; descriptors (count, 3)."""
    random = np.random.default_rng(seed)
    return StoredFeatures(
        keypoints=random.random((count, 2), dtype=np.float32) * 100,
        scores=-np.sort(-random.random(count, dtype=np.float32)),
        descriptors=random.random((count, 3), dtype=np.float32),
        image_size=(640, 480),
        scales=np.full(count, 2, dtype=np.float32) if scales else None,
    )


def write(path: Path, *names: str, **attributes: object) -> None:
    with FeatureWriter(path, {**ATTRIBUTES, **attributes}) as writer:
        for seed, name in enumerate(names):
            writer.write(name, features(seed=seed))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "feats.h5"


def test_what_is_written_is_read_again_bit_for_bit(path: Path) -> None:
    names = ["b.jpg", "a/c.png", "a/ü ö/line\nbreak.jpg", "B.jpg"]
    write(path, *names)
    with FeatureReader(path) as reader:
        assert reader.names() == sorted(names)
        for seed, name in enumerate(names):
            assert name in reader
            np.testing.assert_equal(vars(reader.read(name)), vars(features(seed=seed)))
        assert reader.attributes["network"] == "compact"
        assert reader.attributes["sekd_schema"] == 1


def test_a_match_file_is_refused_but_other_tools_may_say_what_they_like(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["content"] = "matches"
    FeatureReader(path).close()
    with h5py.File(path, "r+") as file:
        file.attrs["sekd_schema"] = 1
    with pytest.raises(InputFileError, match=r"feats\.h5: holds matches, not features"):
        FeatureReader(path)


def test_the_layout_is_hlocs(path: Path) -> None:
    write(path, "a/c.png")
    with h5py.File(path) as file:
        group = file["a/c.png"]
        assert group["keypoints"].shape == (5, 2)
        assert group["keypoints"].dtype == np.float32
        assert group["descriptors"].shape == (3, 5)
        assert group["descriptors"].dtype == np.float32
        assert group["scores"].shape == (5,)
        assert group["image_size"].dtype == np.int64
        np.testing.assert_array_equal(group["image_size"].__array__(), [640, 480])
        assert group["keypoints"].attrs.get("uncertainty") == 2
        assert group.attrs["complete"]


def test_the_checksum_is_of_the_arrays_in_the_order_of_their_names(path: Path) -> None:
    """Files that are there stay readable."""
    write(path, "a")
    with h5py.File(path) as file:
        group, crc = file["a"], 0
        for name in ("descriptors", "image_size", "keypoints", "scales", "scores"):
            crc = zlib.crc32(group[name][()].tobytes(), crc)
        assert group.attrs["crc32"] == crc


def test_descriptors_may_be_halved_but_never_keypoints(path: Path) -> None:
    with FeatureWriter(path, ATTRIBUTES) as writer:
        writer.write("a", features(), descriptor_dtype="float16")
    with h5py.File(path) as file:
        assert file["a/descriptors"].dtype == np.float16
        assert file["a/keypoints"].dtype == np.float32
    with FeatureReader(path) as reader:
        assert reader.read("a").descriptors.dtype == np.float32
        np.testing.assert_allclose(reader.read("a").descriptors, features().descriptors, atol=1e-3)


def test_an_image_without_keypoints_is_complete_too(path: Path) -> None:
    with FeatureWriter(path, ATTRIBUTES) as writer:
        writer.write("a", features(0))
        assert writer.is_complete("a")
    with FeatureReader(path) as reader:
        assert reader.read("a").descriptors.shape == (0, 3)


def test_a_writer_goes_on_where_another_stopped(path: Path) -> None:
    write(path, "a", "b")
    with FeatureWriter(path, ATTRIBUTES) as writer:
        assert writer.is_complete("a")
        assert not writer.is_complete("c")
        writer.write("c", features(seed=2))
    with FeatureReader(path) as reader:
        assert reader.names() == ["a", "b", "c"]


def test_writing_an_image_again_replaces_its_features(path: Path) -> None:
    write(path, "a")
    with FeatureWriter(path, ATTRIBUTES) as writer:
        writer.write("a", features(9, seed=7))
    with FeatureReader(path) as reader:
        np.testing.assert_equal(vars(reader.read("a")), vars(features(9, seed=7)))


def test_a_group_that_was_not_finished_does_not_count(path: Path) -> None:
    write(path, "a")
    with h5py.File(path, "a") as file:
        file.create_group("half.jpg")["keypoints"] = np.zeros((3, 2), dtype=np.float32)
    with FeatureReader(path) as reader:
        assert reader.names() == ["a"]
        assert "half.jpg" not in reader
        with pytest.raises(InputFileError, match="no features of half"):
            reader.read("half.jpg")
    with FeatureWriter(path, ATTRIBUTES) as writer:
        assert not writer.is_complete("half.jpg")
        writer.write("half.jpg", features())
        assert writer.is_complete("half.jpg")


def test_other_settings_are_named_and_overwriting_is_offered(path: Path) -> None:
    write(path, "a")
    other = file_attributes(network="compact", weights_sha256="cd" * 32, settings={"max_keypoints": 500})
    with pytest.raises(OutputError, match=r"max_keypoints 2048 there, 500 now; weights_sha256 .*--overwrite"):
        FeatureWriter(path, other)
    with FeatureWriter(path, other, overwrite=True) as writer:
        assert not writer.is_complete("a")


def test_other_settings_do_not_matter_before_the_first_image(path: Path) -> None:
    write(path)
    other = file_attributes(network="compact", weights_sha256="cd" * 32, settings={})
    with FeatureWriter(path, other) as writer:
        writer.write("a", features())
    with FeatureReader(path) as reader:
        assert reader.attributes["weights_sha256"] == "cd" * 32


def test_a_file_of_another_tool_is_not_added_to(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_group("a")["keypoints"] = np.zeros((3, 2))
    with pytest.raises(OutputError, match=r"feats\.h5: not a feature file of sekd; give another output with -o"):
        FeatureWriter(path, ATTRIBUTES)


def test_an_empty_file_of_another_tool_is_started_afresh(path: Path) -> None:
    with h5py.File(path, "w"):
        pass
    for _ in range(2):  # and is then gone on with
        with FeatureWriter(path, ATTRIBUTES) as writer:
            assert "sekd_schema" in writer._writer.file.attrs


def test_another_version_of_sekd_may_go_on(path: Path) -> None:
    write(path, "a")
    write(path, "b", sekd_version="99")
    with FeatureReader(path) as reader:
        assert reader.names() == ["a", "b"]


def test_an_image_of_a_far_future_is_written(path: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"123")
    os.utime(image, (2**34 - 2**31, 2**34 - 2**31))  # in 2446, the last that ext4 knows
    with FeatureWriter(path, ATTRIBUTES) as writer:
        writer.write("a", features(), source=source_of(image, image))
        assert writer.is_complete("a", source_of(image, image))


def test_a_changed_image_or_mask_is_noticed(path: Path, tmp_path: Path) -> None:
    image, mask = tmp_path / "image", tmp_path / "mask"
    image.write_bytes(b"123")
    mask.write_bytes(b"12")
    with FeatureWriter(path, ATTRIBUTES) as writer:
        writer.write("a", features(), source=source_of(image, mask))
        assert writer.is_complete("a", source_of(image, mask))
        for changed in (source_of(image), source_of(image, mask)._replace(modified=1), Source(3, 4, 5, 6)):
            with pytest.raises(ChangedImageError, match="changed since"):
                writer.is_complete("a", changed)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("changed", ["image", "mask"])
def test_other_content_is_known_by_its_size_or_its_time(tmp_path: Path, changed: str, masked: bool) -> None:
    for name, content in (("image", b"123"), ("mask", b"12")):
        (tmp_path / name).write_bytes(content)
        os.utime(tmp_path / name, ns=(5, 5))
    states = set()
    for content, time in ((b"1234", 6), (b"123", 6), (b"123", 7)):
        (tmp_path / changed).write_bytes(content)
        os.utime(tmp_path / changed, ns=(time, time))
        states.add(source_of(tmp_path / "image", tmp_path / "mask" if masked else None))
    assert len(states) == (1 if changed == "mask" and not masked else 3)


@pytest.mark.parametrize("name", ["../a", "/a", "a//b", "", ".", "a\0", "\udc80.jpg"])
def test_names_that_lead_elsewhere_are_refused(path: Path, name: str) -> None:
    with FeatureWriter(path, ATTRIBUTES) as writer:
        with pytest.raises(ImageError):
            writer.write(name, features())
        writer.write("good", features())
    with FeatureReader(path) as reader:
        assert reader.names() == ["good"]
        assert name not in reader


def test_an_image_and_a_folder_of_the_same_name_are_refused_in_either_order(path: Path) -> None:
    with FeatureWriter(path, ATTRIBUTES) as writer:
        writer.write("a.jpg", features())
        with pytest.raises(ImageError, match=r"'a\.jpg' is an image too"):
            writer.write("a.jpg/keypoints", features())
        writer.write("folder/b.jpg", features())
        with pytest.raises(ImageError, match="the folder of another image"):
            writer.write("folder", features())
    with FeatureReader(path) as reader:
        assert reader.names() == ["a.jpg", "folder/b.jpg"]


def foreign(path: Path, **datasets: np.ndarray) -> None:
    """A file as another tool writes it, with one image `a/b.jpg`."""
    with h5py.File(path, "w") as file:
        group = file.create_group("a/b.jpg")
        for name, values in datasets.items():
            group[name] = values


def test_files_of_other_tools_are_read_without_scores_scales_or_size(path: Path) -> None:
    keypoints = np.array([[3, 4], [10.25, 2]], dtype=np.float16)
    foreign(path, keypoints=keypoints, descriptors=np.eye(2, dtype=np.float16))
    with FeatureReader(path) as reader:
        assert reader.names() == ["a/b.jpg"]
        read = reader.read("a/b.jpg")
    assert read.keypoints.dtype == read.scores.dtype == read.descriptors.dtype == np.float32
    np.testing.assert_array_equal(read.scores, [1, 1])
    assert read.scales is None
    assert read.image_size == (11, 5)


@pytest.mark.parametrize("columns", [3, 4, 6])
def test_of_keypoints_with_scale_and_angle_place_alone_is_kept(path: Path, columns: int) -> None:
    keypoints = np.arange(2 * columns, dtype=np.float32).reshape(2, columns)
    foreign(path, keypoints=keypoints, descriptors=np.eye(2))
    with FeatureReader(path) as reader:
        np.testing.assert_array_equal(reader.read("a/b.jpg").keypoints, keypoints[:, :2])


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"keypoints": np.zeros((4, 1))}, r"\(4, 1\) .* mend the file"),
        ({"descriptors": np.zeros((8, 5))}, "not as many"),
        ({"descriptors": np.zeros((4, 8))}, r"descriptors \(4, 8\), not \(D, N\) of N keypoints; transpose them"),
        ({"scores": np.zeros(3)}, "not as many"),
        ({"scores": np.zeros((4, 1))}, "not as many"),
        ({"scales": np.zeros(3)}, "not as many"),
        ({"keypoints": np.array([b"a", b"b"])}, "no array of numbers"),
        ({"image_size": np.zeros(3)}, "width and height"),
        ({"keypoints": np.full((4, 2), np.nan)}, "not finite"),
        ({"keypoints": np.full((4, 2), 1e300)}, "not finite"),
        ({"keypoints": np.full((4, 2), -1e9)}, "in no image"),
    ],
)
def test_wrong_shapes_are_named(path: Path, changed: dict[str, np.ndarray], words: str) -> None:
    foreign(path, **({"keypoints": np.zeros((4, 2)), "descriptors": np.zeros((8, 4))} | changed))
    with FeatureReader(path) as reader, pytest.raises(InputFileError, match=words):
        reader.read("a/b.jpg")


def test_an_image_has_the_longest_name_that_its_path_ends_with(tmp_path: Path) -> None:
    names = ["c 1.jpg", "b/c 1.jpg", "1.jpg"]
    assert name_of(tmp_path / "b" / "c 1.jpg", names) == "b/c 1.jpg"
    assert name_of(tmp_path / "x" / "c 1.jpg", names) == "c 1.jpg"
    assert name_of(tmp_path / "x1.jpg", names) is None
    assert name_of(tmp_path / "caf\u00e9.jpg", ["cafe\u0301.jpg"]) == "cafe\u0301.jpg", "as macOS spells it"


@pytest.mark.parametrize("count", [2**26, 2**30, 2**40])
def test_a_claim_of_many_keypoints_does_not_fill_the_memory(path: Path, count: int) -> None:
    with h5py.File(path, "w") as file:
        group = file.create_group("a")
        group.create_dataset("keypoints", (count, 2), dtype="f4", chunks=(1024, 2))
        group.create_dataset("descriptors", (64, count), dtype="f4", chunks=(64, 1024))
    with FeatureReader(path) as reader, pytest.raises(InputFileError, match="numbers, which are not there"):
        reader.read("a")


def test_what_packs_best_is_read(path: Path) -> None:
    count = 2**22
    with h5py.File(path, "w") as file:
        group = file.create_group("a")
        packed = {"compression": 9, "shuffle": True}
        group.create_dataset("keypoints", data=np.zeros((count, 2), np.float32), **packed)
        group.create_dataset("descriptors", data=np.zeros((1, count), np.float32), **packed)
    with FeatureReader(path) as reader:
        assert len(reader.read("a")) == count


def test_links_in_circles_and_to_nowhere_end(path: Path) -> None:
    write(path, "a/b/c.jpg")
    with h5py.File(path, "a") as file:
        file["a/b/again"] = file["a"]
        file["a/soft"] = h5py.SoftLink("/a")
        file["a/dangling"] = h5py.SoftLink("/nowhere")
        file["outside"] = h5py.ExternalLink("no-such-file.h5", "/a")
    with FeatureReader(path) as reader:
        assert "a/b/c.jpg" in reader.names()


def test_a_later_schema_is_refused(path: Path) -> None:
    write(path, "a", sekd_schema=99)
    with pytest.raises(InputFileError, match="later sekd"):
        FeatureReader(path)


def test_a_file_cut_anywhere_is_read_or_refused_in_one_line(path: Path, tmp_path: Path) -> None:
    write(path, "a", "b/c", "d")
    content = path.read_bytes()
    cut = tmp_path / "cut.h5"
    for tenth in range(10):
        cut.write_bytes(content[: len(content) * tenth // 10])
        with pytest.raises(InputFileError) as raised, FeatureReader(cut) as reader:
            [reader.read(name) for name in reader.names()]
        assert "\n" not in str(raised.value)


@given(st.binary(max_size=300))
def test_random_bytes_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "random.h5"
    path.write_bytes(content)
    with pytest.raises(InputFileError):
        FeatureReader(path)


@given(st.lists(st.text(st.characters(exclude_categories=[]), max_size=12), max_size=6))
@settings(max_examples=60)
def test_any_name_is_kept_or_refused(tmp_path: Path, names: list[str]) -> None:
    path = tmp_path / "names.h5"
    path.unlink(missing_ok=True)
    kept = set()
    with FeatureWriter(path, ATTRIBUTES) as writer:
        for name in names:
            with contextlib.suppress(ImageError):
                writer.write(name, features(1))
                kept.add(name)
    with FeatureReader(path) as reader:
        assert reader.names() == sorted(kept)
        for name in kept:
            np.testing.assert_equal(vars(reader.read(name)), vars(features(1)))


def test_a_copy_taken_while_it_is_written_has_all_that_was_committed(path: Path, tmp_path: Path) -> None:
    with FeatureWriter(path, ATTRIBUTES) as writer:
        for index in range(20):
            writer.write(f"{index}.jpg", features(seed=index))
            writer.commit()
            copy = shutil.copyfile(path, tmp_path / "copy.h5")
            with FeatureReader(copy) as reader:
                assert len(reader.names()) == index + 1
                np.testing.assert_equal(vars(reader.read(f"{index}.jpg")), vars(features(seed=index)))


def test_descriptors_at_other_turns_are_there_for_those_who_ask(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    turned = random.normal(size=(3, 5, 8)).astype(np.float32)
    features = StoredFeatures(
        keypoints=random.random((5, 2), dtype=np.float32),
        scores=np.ones(5, dtype=np.float32),
        descriptors=random.random((5, 8), dtype=np.float32),
        image_size=(10, 10),
        turned=turned,
    )
    path = tmp_path / "turned.h5"
    attributes = file_attributes(network="compact", weights_sha256="ab", settings={"rotations": True})
    with FeatureWriter(path, attributes) as writer:
        writer.write("a.jpg", features)
    with h5py.File(path) as file:
        assert file["a.jpg/descriptors"].shape == (8, 5), "what plain readers take"
        assert file["a.jpg/descriptors_turned"].shape == (3, 8, 5)
    with FeatureReader(path) as reader:
        assert reader.has_turns
        assert reader.read("a.jpg").turned is None
        np.testing.assert_array_equal(reader.read("a.jpg", turned=True).turned, turned)
    with h5py.File(path, "r+") as file:
        del file["a.jpg/descriptors_turned"]
        file["a.jpg/descriptors_turned"] = np.zeros((3, 8, 4))
    with FeatureReader(path) as reader, pytest.raises(InputFileError, match="no longer those that were written"):
        reader.read("a.jpg", turned=True)
    with h5py.File(path, "r+") as file:
        del file["a.jpg"].attrs["crc32_turned"]
    with FeatureReader(path) as reader, pytest.raises(InputFileError, match=r"descriptors_turned \(3, 8, 4\)"):
        reader.read("a.jpg", turned=True)


@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_descriptors_at_other_turns_are_as_exact_as_the_others(tmp_path: Path, precision: str) -> None:
    one = features(seed=0)
    turned = np.random.default_rng(0).normal(size=(3, *one.descriptors.shape)).astype(np.float32)
    with FeatureWriter(tmp_path / "t.h5", ATTRIBUTES) as writer:
        writer.write("a.jpg", replace(one, turned=turned), descriptor_dtype=precision)
    with h5py.File(tmp_path / "t.h5") as file:
        assert {file[f"a.jpg/{name}"].dtype for name in ("descriptors", "descriptors_turned")} == {np.dtype(precision)}
    with FeatureReader(tmp_path / "t.h5") as reader:
        found = reader.read("a.jpg", turned=True)
    assert found.turned is not None
    assert found.turned.dtype == found.descriptors.dtype == np.float32
    np.testing.assert_array_equal(found.turned, turned.astype(precision))


def test_a_file_whose_attributes_are_damaged_does_not_stay_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(_: object) -> None:
        raise OSError("can't read data")

    path = tmp_path / "feats.h5"
    FeatureWriter(path, {}).close()
    monkeypatch.setattr("sekd_cli.kept_file.plain_attributes", damaged)
    before = sorted(Path("/dev/fd").iterdir())
    with pytest.raises(InputFileError, match="damaged") as told:
        FeatureReader(path)
    assert sorted(Path("/dev/fd").iterdir()) == before, told  # which would keep it open as well
