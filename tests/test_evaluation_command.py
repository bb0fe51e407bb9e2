"""`sekd evaluate` as it is typed: what it prints, draws and refuses."""

import csv
import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import pytest
from drawn import drawn_photograph
from drawn_features import ATTRIBUTES, drawn_features
from evaluation_sets import Orbit, half_from_whole

from sekd_cli.cli import main
from sekd_cli.evaluation.plots import Panel, draw
from sekd_cli.evaluation.tables import Table, mark, number, percent, plain, text
from sekd_cli.feature_file import FeatureWriter

SIZE, HALF = (200, 160), (100, 80)  # width, height of both images


@pytest.fixture(scope="module")
def planar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One sequence: a drawn photograph and its half."""
    folder = tmp_path_factory.mktemp("planar") / "v_half"
    folder.mkdir()
    image = drawn_photograph(0, *SIZE[::-1])
    cv2.imwrite(str(folder / "1.png"), image)
    cv2.imwrite(str(folder / "2.png"), cv2.resize(image, HALF, interpolation=cv2.INTER_AREA))
    (folder / "H_1_2").write_text("\n".join(" ".join(map(str, row)) for row in half_from_whole()))
    return folder.parent


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of `sekd evaluate ...`."""
    code = main(["evaluate", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_several_methods_give_one_table(
    planar: Path, untrained_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = ("-m", "sift", "-m", "rootsift", "-m", "orb", "-w", untrained_weights)
    code, out, _ = run(capsys, "homography", planar, *methods, "--seeds", 1)
    assert code == 0
    lines = [line.split() for line in out.splitlines() if line.strip()]
    assert [line[0] for line in lines[2:]] == ["untrained", "sift", "rootsift", "orb"]
    assert all(len(line) == len(lines[2]) for line in lines[3:])


def test_json_holds_every_figure_and_what_was_asked_for(planar: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "homography", planar, "-m", "sift", "--json", "--per-pair", "--seeds", 2)
    content = json.loads(out)
    assert code == 0
    assert content["settings"]["methods"] == ["sift"]
    assert content["settings"]["root"] == str(planar)
    [row] = content["homography"]
    assert row["mma@3"] > 0.5
    assert row["pairs"] == 1
    assert {"ha", "ha_ransac@10", "auc_magsac@5", "viewpoint_ha", "repeatability", "localisation"} <= set(row)
    assert [pair["pair"] for pair in content["pairs"]] == ["v_half 1-2.png"]


def test_two_runs_print_the_same(planar: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("homography", planar, "-m", "sift", "-m", "orb", "--csv")
    assert run(capsys, *command)[1] == run(capsys, *command)[1]


def test_csv_and_markdown_have_a_line_a_method(planar: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("homography", planar, "-m", "sift", "-m", "orb", "--seeds", 1)
    rows = list(csv.DictReader(io.StringIO(run(capsys, *command, "--csv")[1])))
    assert [row["method"] for row in rows] == ["sift", "orb"]
    assert float(rows[0]["ha_magsac"]) <= 1
    lines = run(capsys, *command, "--markdown")[1].splitlines()
    assert lines[0].startswith("| method | HA |")
    assert lines[1].startswith("| --- | ---: |")
    assert [line.split()[1] for line in lines[2:]] == ["sift", "orb"]
    pairs = list(csv.DictReader(io.StringIO(run(capsys, *command, "--csv", "--per-pair")[1])))
    assert [row["pair"] for row in pairs] == ["v_half 1-2.png"] * 2


def test_weights_of_the_same_name_are_told_apart(
    planar: Path, untrained_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = ("-w", untrained_weights, "-w", untrained_weights)
    rows = json.loads(run(capsys, "homography", planar, *both, "--seeds", 1, "--json")[1])["homography"]
    assert [row["method"] for row in rows] == ["untrained", "untrained-2"]
    assert rows[0]["mma"] == rows[1]["mma"]


def test_several_choices_of_sizes_are_rows(
    planar: Path, untrained_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("-w", untrained_weights, "--threshold", 0, "--max-keypoints", 0, "--seeds", 1, "--json")
    sizes = ("--scales", "1", "--scales", "1,0.5")
    one, two = json.loads(run(capsys, "homography", planar, *command, *sizes)[1])["homography"]
    assert (one["method"], two["method"]) == ("untrained at 1", "untrained at 1,0.5")
    assert two["keypoints"] > 1.1 * one["keypoints"]
    [own] = json.loads(run(capsys, "homography", planar, *command)[1])["homography"]
    assert own["keypoints"] == two["keypoints"], "the network's own"
    assert run(capsys, "homography", planar, *command, "--scales", "1;2")[0] == 2


def test_a_feature_file_stands_beside_what_is_computed_here(
    planar: Path, untrained_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features = tmp_path / "stored.h5"
    options = ("--weights", untrained_weights, "--max-keypoints", 200, "--quiet")
    assert main(["extract", str(planar), "-o", str(features), *map(str, options)]) == 0
    capsys.readouterr()
    command = ("-w", untrained_weights, "-f", features, "--max-keypoints", 200, "--seeds", 1, "--json")
    stored, computed = json.loads(run(capsys, "homography", planar, *command)[1])["homography"][::-1]
    assert (stored.pop("method"), computed.pop("method")) == ("stored", "untrained")
    assert stored == pytest.approx(computed, abs=1e-4)


def test_pose_and_sfm_print_their_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Orbit().write_strecha(tmp_path)  # even images: nothing to detect, and still a table
    code, out, _ = run(capsys, "pose", tmp_path, "-m", "orb", "--neighbours", 1, "--json", "--per-pair")
    assert code == 0
    content = json.loads(out)
    assert content["pose"][0]["maa@10"] == 0
    assert [pair["error"] for pair in content["pairs"]] == [None] * 4  # infinity, which JSON hasn't
    pytest.importorskip("pycolmap")
    code, out, _ = run(capsys, "sfm", tmp_path, "-m", "orb", "--seeds", 1, "--json")
    assert code == 0
    assert json.loads(out)["structure_from_motion"][0]["registered"] == 0


def test_speed_needs_no_image(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "speed", "-m", "orb", "--rounds", 1, "--json")
    assert code == 0
    [row] = json.loads(out)["speed"]
    assert row["threads"] == row["ratio"] == 1
    assert row["keypoints"] == 2048


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_curves_are_drawn(planar: Path, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    plot = tmp_path / f"curves.{suffix}"
    code, _, _ = run(capsys, "homography", planar, "-m", "orb", "--seeds", 1, "--plot", plot)
    assert code == 0
    starts = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}
    assert plot.read_bytes().startswith(starts[suffix])


@pytest.mark.parametrize(
    ("plot", "exit_code", "complaint"), [("curves.xyz", 2, "must end in"), ("none/curves.png", 5, "no folder")]
)
def test_a_plot_that_can_not_be_is_refused_before_the_work(
    planar: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    *,
    plot: str,
    exit_code: int,
    complaint: str,
) -> None:
    pytest.importorskip("matplotlib")
    code, out, err = run(capsys, "homography", planar, "-m", "orb", "--plot", tmp_path / plot)
    assert (code, out) == (exit_code, "")
    assert complaint in err


@pytest.mark.parametrize(
    ("module", "arguments"),
    [("matplotlib.figure", ("homography", "--plot", "a.png")), ("pycolmap", ("sfm",))],
)
def test_a_missing_extra_is_named(
    planar: Path,
    module: str,
    arguments: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    code, _, err = run(capsys, *arguments, planar)
    assert code == 6
    assert "pip install 'sekd[" in err


def test_what_is_not_there_is_told(planar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, exit_code in (
        (("homography", tmp_path), 4),
        (("pose", tmp_path), 4),
        (("homography", planar, "-w", tmp_path / "none.safetensors"), 4),
        (("homography", planar, "-f", tmp_path / "none.h5"), 4),
        (("homography", planar, "-m", "surf"), 2),
        (("homography", planar, "--max-keypoints", -1), 2),
        (("homography", planar, "-w", tmp_path / "x", "--threshold", 2), 2),
        (("homography", tmp_path / "none"), 2),
    ):
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (exit_code, ""), arguments
        assert err.strip()


def test_cells_round_and_figures_do_not() -> None:
    columns = (text("m", "m"), percent(("a", "b"), "a/b"), number("c", "c", 2), mark("d", "d"), percent("e", "e"))
    row = {"m": "x|y", "a": 0.12345, "b": float("nan"), "c": float("inf"), "d": True}
    table = Table(title="T", columns=columns, rows=[row])
    assert table.cells() == [["x|y", "12.3/-", "inf", "yes", "-"]]
    assert table.markdown().splitlines()[-1] == "| x\\|y | 12.3/- | inf | yes | - |"
    assert table.csv() == "m,a,b,c,d\nx|y,0.12345,nan,inf,True\n"
    assert plain(row) == {"m": "x|y", "a": 0.12345, "b": None, "c": None, "d": True}


def test_feature_files_of_the_same_name_are_told_apart(
    planar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / name for name in ("a/feats.h5", "b/feats.h5", "c/feats-2.h5", "d/[bold]$5_$.h5")]
    for count, file in enumerate(files, start=5):
        features = drawn_features(0, common=10 * count, own=0)
        with FeatureWriter(file, ATTRIBUTES) as writer:
            for name, size in (("1.png", SIZE), ("2.png", HALF)):
                writer.write(f"v_half/{name}", replace(features, image_size=size))
    given = [argument for file in files for argument in ("-f", file)]
    code, out, _ = run(capsys, "homography", planar, *given, "--seeds", 1, "--json", "--plot", tmp_path / "plot.png")
    assert code == 0
    rows = json.loads(out)["homography"]
    assert [(row["method"], row["keypoints"]) for row in rows] == [
        ("feats", 50),
        ("feats-3", 60),
        ("feats-2", 70),
        ("[bold]$5_$", 80),
    ]
    assert cv2.imread(str(tmp_path / "plot.png")) is not None
    code, out, _ = run(capsys, "homography", planar, *given, "--seeds", 1)
    assert "[bold]$5_$" in out  # no markup


def test_a_feature_file_without_an_image_is_told_before_the_work(
    planar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["extract", str(planar / "v_half" / "1.png"), "-o", str(tmp_path / "one.h5"), "-q"]) == 0
    monkeypatch.setattr("sekd_cli.evaluation.methods.ComputedMethod.features", None)
    code, out, err = run(capsys, "homography", planar, "-m", "orb", "-f", tmp_path / "one.h5")
    assert (code, out) == (4, str(tmp_path / "one.h5") + "\n")
    assert "no features of" in err


def test_options_of_sekd_need_sekd(planar: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in (("--threshold", 0.5), ("--precision", "float32"), ("--scales", "1")):
        code, _, err = run(capsys, "homography", planar, "-m", "orb", *option)
        assert code == 2
        assert "add --method sekd" in err


def test_a_column_that_a_later_row_alone_has_is_written_and_what_json_lacks_is_none_anywhere() -> None:
    rows = [{"m": "x|y", "c": 1.0}, {"m": "z", "c": float("nan"), "more": 2}]
    table = Table(title="T", columns=(text("m", "m"), number("c", "c")), rows=rows)
    assert table.markdown().splitlines() == ["| m | c |", "| --- | ---: |", "| x\\|y | 1 |", "| z | - |"]
    assert table.csv() == "m,c,more\nx|y,1.0,\nz,nan,2\n"
    assert plain({"a": (float("inf"), float("-inf"), float("nan"))}) == {"a": [None, None, None]}


def test_a_plot_replaces_an_older_one_and_takes_labels_as_they_are(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "curves.SVG"
    path.touch()
    draw([Panel(title="T", bars={"$x$": 1.0, "$\\frac$": 2.0})], path)
    assert path.read_bytes().startswith(b"<?xml")
