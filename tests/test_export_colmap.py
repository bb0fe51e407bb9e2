"""COLMAP databases, up to a reconstruction of a drawn room whose cameras are known."""

import math
import queue
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from drawn_features import ATTRIBUTES
from drawn_scene import COLMAP_PARAMETERS, VIEWS, camera_from_world, direction_error, draw_scene
from full_disk import files_of_at_most
from PIL import Image

from sekd_cli import cli
from sekd_cli.errors import InputFileError, MissingExtraError, NothingToDoError, OutputError, UsageError
from sekd_cli.export.colmap import READABLE, CameraSettings, ColmapExport, Tell, export_colmap
from sekd_cli.export.colmap_watch import Watch
from sekd_cli.feature_file import FeatureReader, FeatureWriter
from sekd_cli.match_file import MatchReader
from sekd_cli.stored_features import StoredFeatures
from sekd_cli.workers import CAN_FORK, Worker

NAMES = ["a 1.png", "b/ü.png", "c.png"]
CAMERA = CameraSettings()


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_image(path: Path, width: int = 64, height: int = 48) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = cv2.imencode(".png", np.full((height, width), 128, np.uint8))[1]
    path.write_bytes(encoded.tobytes())


def some_features(count: int = 20) -> StoredFeatures:
    random = np.random.default_rng(count)
    return StoredFeatures(
        keypoints=random.uniform(0, 40, (count, 2)).astype(np.float32),
        scores=np.linspace(1, 0, count, dtype=np.float32),
        descriptors=np.eye(count, 64, dtype=np.float32),
        image_size=(64, 48),
    )


def write_features(names: list[str]) -> Path:
    with FeatureWriter(Path("feats.h5"), ATTRIBUTES, overwrite=True) as writer:
        for name in names:
            writer.write(name, some_features())
    return Path("feats.h5")


def write_matches(pairs: dict[tuple[str, str], list[int]]) -> Path:
    """As hloc writes them: flat names, no attributes."""
    with h5py.File("matches.h5", "w") as file:
        for names, matches0 in pairs.items():
            group = file.create_group("/".join(name.replace("/", "-") for name in names))
            group["matches0"] = np.array(matches0, np.int32)
            group["matching_scores0"] = np.ones(len(matches0), np.float32)
    return Path("matches.h5")


def exported(camera: CameraSettings = CAMERA, *, overwrite: bool = False, tell: Tell = lambda *_: None) -> ColmapExport:
    with FeatureReader(Path("feats.h5")) as features, MatchReader(Path("matches.h5")) as matches:
        photos, database = Path("photos"), Path("database.db")
        return export_colmap(photos, features, matches, database, camera, overwrite=overwrite, tell=tell)


@pytest.fixture
def three_images() -> None:
    pytest.importorskip("pycolmap")
    for name in NAMES:
        write_image(Path("photos") / name)
    write_features(NAMES)
    write_matches({(NAMES[0], NAMES[1]): [1, -1, 0], (NAMES[2], NAMES[1]): [-1, 5, 4, -1]})


@pytest.mark.skipif(not CAN_FORK, reason="no other process looks there")
def test_tables_are_watched_from_another_process() -> None:
    seen: queue.SimpleQueue[int] = queue.SimpleQueue()
    path = Path("some #1 ü.db").resolve()
    with pytest.MonkeyPatch.context() as patch, Watch() as watch:
        patch.setattr("sekd_cli.export.colmap_watch.EVERY", 0.01)
        with watch.growth(path, "pairs", seen.put):
            assert seen.get(timeout=20) == 0, "no such file"
            with closing(sqlite3.connect(path)) as database:
                database.execute("PRAGMA journal_mode=WAL")
                database.execute("CREATE TABLE pairs (number INTEGER PRIMARY KEY)")
                for count in (1, 2):
                    database.execute("INSERT INTO pairs VALUES (?)", (count,))
                    database.commit()
                    while seen.get(timeout=20) < count:
                        pass
    while not seen.empty():
        seen.get()
    time.sleep(0.05)
    assert seen.empty(), "nobody looks any more"


def test_being_told_to_end_prints_no_stack() -> None:
    pytest.importorskip("pycolmap")
    code = "import os, signal; from sekd_cli.pycolmap_extra import require_pycolmap as load; load()"
    ended = subprocess.run(
        [sys.executable, "-c", f"{code}; os.kill(os.getpid(), signal.SIGTERM)"], capture_output=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (-signal.SIGTERM, b"")


@pytest.mark.usefixtures("three_images")
def test_keypoints_are_half_a_pixel_on_and_matches_belong_to_the_names_they_had() -> None:
    import pycolmap

    report = exported()
    assert (report.images, report.pairs, report.matches, report.missing, report.unreadable) == (3, 2, 4, [], [])
    assert (report.verified_pairs, report.pairs_of_chance) == (0, 0), "COLMAP takes 15 matches for a geometry"
    with pycolmap.Database.open("database.db") as database:
        numbers = {image.name: image.image_id for image in database.read_all_images()}
        assert set(numbers) == set(NAMES)
        keypoints = database.read_keypoints(numbers["b/ü.png"])
        np.testing.assert_array_equal(keypoints[:, :2], some_features().keypoints + np.float32(0.5))
        np.testing.assert_array_equal(database.read_matches(numbers["a 1.png"], numbers["b/ü.png"]), [[0, 1], [2, 0]])
        np.testing.assert_array_equal(database.read_matches(numbers["c.png"], numbers["b/ü.png"]), [[1, 5], [2, 4]])
        assert database.num_matched_image_pairs() == 2
        assert database.num_frames() == 3
        assert database.num_descriptors() == 0


def test_what_chance_has_is_not_verified_and_how_far_it_is_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of wrong matches COLMAP finds 20 and more that agree, and takes 15."""
    pytest.importorskip("pycolmap")
    names, count = ["a.png", "b.png", "c.png"], 200
    random = np.random.default_rng(0)
    xy = random.uniform(0, (640, 480), (count, 2)).astype(np.float32)
    places = {"a.png": xy, "b.png": xy * 0.9 + 20, "c.png": random.uniform(0, (640, 480), (count, 2))}
    with FeatureWriter(Path("feats.h5"), ATTRIBUTES) as writer:
        for name in names:
            write_image(Path("photos") / name, 640, 480)
            one = replace(some_features(count), keypoints=places[name].astype(np.float32), image_size=(640, 480))
            writer.write(name, one)
    every = list(range(count))
    write_matches(dict.fromkeys(combinations(names, 2), every))
    monkeypatch.setattr("sekd_cli.export.colmap_watch.EVERY", 0.0)
    told: list[tuple[str, int, int | None]] = []
    report = exported(tell=lambda *one: told.append(one))
    assert (report.pairs, report.verified_pairs, report.pairs_of_chance) == (3, 1, 2)
    seen = {part: [one[1:] for one in told if one[0] == part] for part in dict.fromkeys(part for part, _, _ in told)}
    assert list(seen) == ["read images", "write images", "write pairs", "verify pairs", "check pairs"]
    for part in ("read images", "verify pairs"):
        assert seen[part][0] == (0, 3)
        assert not CAN_FORK or len(seen[part]) > 1
        assert {total for _, total in seen[part]} == {3}
    assert seen["write images"] == seen["check pairs"] == [(1, 3), (2, 3), (3, 3)]
    assert seen["write pairs"] == [(1, None), (2, None), (3, None)]


@pytest.mark.usefixtures("three_images")
def test_a_pair_that_another_tool_wrote_both_ways_is_taken_once() -> None:
    both = {(NAMES[0], NAMES[1]): [1, -1, 0], (NAMES[1], NAMES[0]): [2, 0, -1]}
    write_matches(both | {(NAMES[2], NAMES[2]): [0, 1, 2]})  # nor is an image matched with itself
    assert exported().pairs == 1


@pytest.mark.usefixtures("three_images")
def test_images_that_are_gone_or_unreadable_are_named_and_the_others_done() -> None:
    (Path("photos") / NAMES[0]).unlink()
    (Path("photos") / NAMES[2]).write_bytes(b"no image")
    report = exported()
    assert (report.missing, report.unreadable) == ([NAMES[0]], [NAMES[2]])
    assert (report.images, report.pairs, report.skipped_pairs) == (1, 0, 2)


@pytest.mark.usefixtures("three_images")
def test_an_image_that_can_not_be_looked_up_is_missing() -> None:
    """As one in a closed folder."""
    write_features([*NAMES, "z" * 300])
    assert exported().missing == ["z" * 300]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "PPM", "TGA", "WEBP", "GIF", "JPEG2000"])
def test_what_colmap_reads_is_what_is_said_that_it_reads(kind: str) -> None:
    pytest.importorskip("pycolmap")
    names = ["a.png", f"image.{kind.lower()}"]
    write_image(Path("photos") / names[0])
    Image.new("RGB", (64, 48), (90, 120, 150)).save(Path("photos") / names[1], kind)
    write_features(names)
    write_matches({(names[0], names[1]): [1, -1, 0]})
    assert exported().unreadable == ([] if kind in READABLE else [names[1]])


@pytest.mark.usefixtures("three_images")
def test_an_image_that_is_unlike_those_whose_camera_it_shares_is_told_apart_from_unreadable_ones() -> None:
    write_image(Path("photos") / NAMES[2], 32, 24)
    report = exported(CameraSettings(mode="single"))
    assert (report.unlike, report.unreadable, report.images) == ([NAMES[2]], [], 2)


@pytest.mark.usefixtures("three_images")
def test_the_wrong_folder_is_an_error_and_leaves_nothing() -> None:
    for name in NAMES:
        (Path("photos") / name).unlink()
    with pytest.raises(NothingToDoError, match="has no image of"):
        exported()
    assert not list(Path().glob("*database*"))


@pytest.mark.usefixtures("three_images")
def test_matches_of_other_features_are_refused() -> None:
    write_matches({(NAMES[0], NAMES[1]): [20]})
    with pytest.raises(InputFileError, match=r"keypoint 20 of b/ü\.png, which has 20"):
        exported()
    assert not Path("database.db").exists()


@pytest.mark.usefixtures("three_images")
def test_an_image_without_keypoints_may_be_in_a_pair_without_matches() -> None:
    with FeatureWriter(Path("feats.h5"), ATTRIBUTES) as writer:
        writer.write(NAMES[0], some_features(0))
    write_matches({(NAMES[0], NAMES[1]): [], (NAMES[2], NAMES[0]): [-1, -1]})
    assert (report := exported()).pairs == 2
    assert (report.images, report.matches) == (3, 0)


@pytest.mark.usefixtures("three_images")
def test_matches_of_features_that_changed_since_are_refused() -> None:
    Path("matches.h5").unlink()
    Path("pairs.txt").write_text("\t".join(NAMES[:2]), encoding="utf-8")
    assert cli.main(["match", "pairs.txt", "--device", "cpu"]) == 0
    assert exported().pairs == 1
    with FeatureWriter(Path("feats.h5"), ATTRIBUTES) as writer:
        writer.write(NAMES[1], replace(some_features(), keypoints=some_features().keypoints[::-1].copy()))
    with pytest.raises(InputFileError, match=r"a 1\.png and b/ü\.png were matched with other features"):
        exported(overwrite=True)


@pytest.mark.usefixtures("three_images")
def test_an_image_that_is_not_as_large_as_its_features_say_has_no_keypoints() -> None:
    import pycolmap

    write_image(Path("photos") / NAMES[2], 32, 24)
    report = exported()
    assert (report.resized, report.images, report.pairs, report.skipped_pairs) == ([NAMES[2]], 2, 1, 1)
    with pycolmap.Database.open("database.db") as database:
        numbers = {image.name: image.image_id for image in database.read_all_images()}
        assert [database.num_keypoints_for_image(numbers[name]) for name in NAMES] == [20, 20, 0]
    with h5py.File("feats.h5", "r+") as file:
        del file.attrs["sekd_schema"]  # as of another tool, whose size may be a guess
    assert exported(overwrite=True).resized == []


@pytest.mark.usefixtures("three_images")
def test_where_colmap_can_use_no_image_there_is_no_database() -> None:
    for name in NAMES[:2]:
        (Path("photos") / name).write_bytes(b"no image")
    write_image(Path("photos") / NAMES[2], 32, 24)
    with pytest.raises(NothingToDoError, match="COLMAP can use none of 3 images"):
        exported()
    assert not list(Path().glob("*database*"))


@pytest.mark.usefixtures("three_images")
def test_what_sqlite_left_beside_an_earlier_database_does_not_get_into_the_new_one() -> None:
    import pycolmap

    Path("disk").mkdir()
    Path("database.db").symlink_to("disk/real.db")
    exported()
    with closing(sqlite3.connect("database.db")) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("DELETE FROM keypoints")
        connection.commit()
        stale = Path("disk/real.db-wal").read_bytes()
    Path("disk/real.db-wal").write_bytes(stale)  # as a process that was killed leaves it
    exported(overwrite=True)
    assert [path.name for path in Path("disk").iterdir()] == ["real.db"]
    with pycolmap.Database.open("database.db") as database:
        assert database.num_keypoints() == 60


@pytest.mark.usefixtures("three_images")
def test_what_killed_exports_left_is_cleared_away() -> None:
    Path("disk").mkdir()
    Path("database.db").symlink_to("disk/real [1].db")
    for name in ("999999999.part", "999999999.part-wal", "999999998.part-shm", "1.part", "1.part-wal"):
        Path(f"disk/.real [1].db.{name}").write_bytes(b"half")  # of no such processes, and of one that runs
    exported()
    left = [".real [1].db.1.part", ".real [1].db.1.part-wal"]
    assert sorted(path.name for path in Path("disk").iterdir()) == [*left, "real [1].db"]


@pytest.mark.skipif(not CAN_FORK, reason="COLMAP would end the tests")
@pytest.mark.parametrize("size", [50_000, 180_000, 300_000])
def test_a_full_disk_is_told_in_a_line_and_leaves_nothing(size: int) -> None:
    pytest.importorskip("pycolmap")
    names = [f"{number}.png" for number in range(10)]
    for name in names:
        write_image(Path("photos") / name)
    write_features(names)
    write_matches({pair: list(range(20)) for pair in combinations(names, 2)})
    with files_of_at_most(size), pytest.raises(OutputError, match=r"database.db: COLMAP .*disk full"):
        exported()
    assert sorted(path.name for path in Path().iterdir()) == ["feats.h5", "matches.h5", "photos"]


@pytest.mark.skipif(not CAN_FORK, reason="SQLite's locks are a process's own")
@pytest.mark.usefixtures("three_images")
def test_a_database_that_sqlite_did_not_finish_is_not_taken_for_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    held = []

    def hold(path: Path) -> None:
        """While another process reads a database, closing it leaves a part of it beside it."""
        held.append(sqlite3.connect(path))
        held[0].execute("SELECT * FROM images").fetchall()

    reader = Worker(hold)

    def of_chance(*_: object) -> list[tuple[int, int]]:
        reader(next(Path().glob(".database.db.*.part")))
        return []

    monkeypatch.setattr("sekd_cli.export.colmap._of_chance", of_chance)
    with pytest.raises(OutputError, match="could not finish it"):
        exported()
    reader.stop()
    assert sorted(path.name for path in Path().iterdir()) == ["feats.h5", "matches.h5", "photos"]


@pytest.mark.usefixtures("three_images")
def test_a_database_is_replaced_only_if_asked_for() -> None:
    exported()
    before = Path("database.db").read_bytes()
    with pytest.raises(OutputError, match="--overwrite"):
        exported()
    assert Path("database.db").read_bytes() == before
    write_matches({(NAMES[0], NAMES[1]): [3]})
    assert exported(overwrite=True).matches == 1
    assert sorted(path.name for path in Path().iterdir()) == ["database.db", "feats.h5", "matches.h5", "photos"]


@pytest.mark.usefixtures("three_images")
def test_cameras_are_shared_or_given() -> None:
    import pycolmap

    exported(CameraSettings(mode="single", model="PINHOLE", parameters="100,110,32,24"))
    with pycolmap.Database.open("database.db") as database:
        [camera] = database.read_all_cameras()
    assert camera.params.tolist() == [100, 110, 32, 24]
    exported(CameraSettings(mode="per-image"), overwrite=True)
    with pycolmap.Database.open("database.db") as database:
        assert database.num_cameras() == 3
    for settings in (CameraSettings(model="BROWNIE"), CameraSettings(model="PINHOLE", parameters="1,2")):
        with pytest.raises(UsageError, match="--camera-model"):
            exported(settings, overwrite=True)


@pytest.mark.usefixtures("three_images")
def test_two_images_with_one_flat_name_are_an_error_that_names_both() -> None:
    write_image(Path("photos/b-ü.png"))
    write_features([*NAMES, "b-ü.png"])
    with pytest.raises(UsageError, match=r"b-ü\.png and b/ü\.png"):
        exported()


def test_without_pycolmap_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    write_features(NAMES)
    write_matches({})
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    with pytest.raises(MissingExtraError, match=r"sekd\[colmap\]"):
        exported()


def extract_sift(folder: Path, names: list[str]) -> None:
    """A feature file of SIFT's, so that a reconstruction tells about the way and not about the weights."""
    sift = cv2.SIFT_create(1500)
    with FeatureWriter(Path("feats.h5"), ATTRIBUTES) as writer:
        for name in names:
            image = cv2.imread(str(folder / name), cv2.IMREAD_GRAYSCALE)
            found, descriptors = sift.detectAndCompute(image, None)
            features = StoredFeatures(
                keypoints=np.array([one.pt for one in found], np.float32),
                scores=np.array([one.response for one in found], np.float32),
                descriptors=descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True),
                image_size=(image.shape[1], image.shape[0]),
            )
            writer.write(name, features)


@pytest.mark.parametrize("features", ["sift", "shipped"])
def test_a_drawn_room_is_reconstructed(features: str) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    names = draw_scene(Path("photos"))
    if features == "sift":
        extract_sift(Path("photos"), names)
    else:
        assert cli.main(["extract", "photos", "-o", "feats.h5", "--device", "cpu"]) == 0
    assert cli.main(["pairs", "feats.h5", "-o", "pairs.txt"]) == 0
    assert cli.main(["match", "pairs.txt", "--ratio", "0.9", "--device", "cpu"]) == 0
    camera = ["--camera-mode", "single", "--camera-model", "PINHOLE", "--camera-params", COLMAP_PARAMETERS]
    assert cli.main(["export", "colmap", "--images", "photos", *camera]) == 0

    shutil.copy("database.db", "copy.db")
    with pycolmap.Database.open("copy.db") as database:
        database.clear_two_view_geometries()
    pycolmap.verify_matches("copy.db", "pairs.txt")  # as hloc does
    with pycolmap.Database.open("copy.db") as database:
        assert database.num_verified_image_pairs() == math.comb(VIEWS - 1, 2)  # it takes no name with a space

    options = pycolmap.IncrementalPipelineOptions()
    options.num_threads, options.random_seed, options.extract_colors = 1, 0, False
    options.ba_refine_focal_length = options.ba_refine_extra_params = False
    Path("model").mkdir()
    models = pycolmap.incremental_mapping("database.db", "photos", "model", options)
    model = max(models.values(), key=lambda one: one.num_reg_images())
    assert model.num_reg_images() == VIEWS
    assert model.num_points3D() > 200
    assert model.compute_mean_reprojection_error() < 1
    found = {image.name: image.cam_from_world() for image in model.images.values()}
    for (view, name), (_, following) in pairwise(enumerate(names)):
        (rotation0, translation0), (rotation1, translation1) = camera_from_world(view), camera_from_world(view + 1)
        turn = rotation1 @ rotation0.T
        relative = found[following] * found[name].inverse()
        turned_back = cv2.Rodrigues(relative.rotation.matrix() @ turn.T)[0]
        assert np.degrees(np.linalg.norm(turned_back)) < 0.2
        assert direction_error(relative.translation, translation1 - turn @ translation0) < 1
