"""A run's folder: what may go on in it, and what may not; and what its log survives."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sekd_cli.errors import OutputError
from sekd_cli.training.run_folder import RunFolder
from sekd_cli.training.settings import TrainingSettings

SETTINGS = TrainingSettings(rounds=2)
HOLDING = """
import sys
from pathlib import Path
from sekd_cli.training.run_folder import RunFolder
with RunFolder(Path(sys.argv[1])).locked():
    print("locked", flush=True)
    sys.stdin.read()
"""


def begun(path: Path, *, settings: TrainingSettings = SETTINGS) -> RunFolder:
    """A run that has labelled something."""
    run = RunFolder(path)
    run.begin(settings, ["a"], Path("cache"))
    (path / "labels-0.npy").touch()
    return run


def test_a_run_folder_refuses_other_settings(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    run.begin(SETTINGS, ["a"], tmp_path)
    assert run.settings() == SETTINGS
    with pytest.raises(OutputError, match="other settings"):
        run.begin(SETTINGS, ["b"], tmp_path)
    with pytest.raises(OutputError, match="other settings"):
        run.begin(replace(SETTINGS, rounds=3), ["a"], tmp_path)


def test_a_run_that_came_to_nothing_is_replaced_and_a_finished_one_is_not(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.begin(SETTINGS, ["nowhere"], tmp_path)
    run.begin(replace(SETTINGS, rounds=3), ["photos"], tmp_path)
    assert run.settings().rounds == 3
    assert run.data()["data"] == ["photos"]
    (run.path / "model.safetensors").touch()  # all that is left of a run that was cleared up
    with pytest.raises(OutputError, match="other settings"):
        run.begin(SETTINGS, ["photos"], tmp_path)


def test_weights_whose_checkpoint_was_deleted_are_not_replaced(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    run.check_what_is_left()  # killed before its first checkpoint
    for name in ("checkpoint.pt", "model.safetensors"):
        (run.path / name).touch()
        run.check_what_is_left()
    (run.path / "checkpoint.pt").unlink()
    with pytest.raises(OutputError, match="another folder"):
        run.check_what_is_left()


def test_weights_of_no_run_are_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / "sekd.safetensors").touch()
    RunFolder(tmp_path).begin(SETTINGS, ["a"], tmp_path)
    assert RunFolder(tmp_path).settings() == SETTINGS


def test_a_run_is_the_same_from_any_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = begun(tmp_path / "run", settings=replace(SETTINGS, start="first.safetensors"))
    assert run.settings().start == str(tmp_path / "first.safetensors")
    assert run.data()["cache"] == str(tmp_path / "cache")
    run.begin(replace(SETTINGS, start="first.safetensors"), ["a"], tmp_path)  # the same command again


def test_a_run_begun_with_a_relative_start_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    relative = replace(SETTINGS, start="first.safetensors")
    run = begun(tmp_path / "run")
    (run.path / "config.toml").write_text(relative.as_toml())  # as it was written before
    run.begin(relative, ["a"], tmp_path)
    assert run.settings() == relative


def test_labels_of_other_photographs_are_refused(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.begin(SETTINGS, ["a"], tmp_path)
    run.check_photographs("first")
    run.check_photographs("other")  # nothing is labelled yet
    (run.path / "labels-0.npy").touch()
    run.check_photographs("other")
    with pytest.raises(OutputError, match="photographs have changed"):
        run.check_photographs("first")
    run.begin(SETTINGS, ["a"], tmp_path)  # keeps what was noted
    with pytest.raises(OutputError, match="photographs have changed"):
        run.check_photographs("first")


def test_a_run_of_before_digests_goes_on_and_has_one_from_then_on(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    (run.path / "data.json").write_text(json.dumps({"data": ["a"], "cache": "cache"}))
    run.check_photographs("now")
    with pytest.raises(OutputError, match="photographs have changed"):
        run.check_photographs("later")


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    command = [sys.executable, "-c", HOLDING, str(run.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(OutputError, match="another process is training in it"), run.locked():
            pass
        other.kill()
        other.wait()
        with run.locked():
            pass


def test_a_folder_that_can_not_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="its folder is a file"), RunFolder(tmp_path / "file" / "run").locked():
        pass


def test_steps_that_a_kill_lost_and_the_clock_kept_from_being_redone_are_not_counted(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.log({"action": "begin", "run_step": 0})
    for step in (1, 2, 3):
        run.log({"action": "update", "round": 0, "step": step, "run_step": step})
    run.log({"action": "begin", "run_step": 1})
    run.log({"action": "update", "round": 1, "step": 1, "run_step": 2})
    steps = [(entry["round"], entry["step"]) for entry in run.entries() if entry["action"] == "update"]
    assert steps == [(0, 1), (1, 1)]


def test_a_line_of_the_log_that_a_kill_tore_costs_no_other(tmp_path: Path) -> None:
    RunFolder(tmp_path).log({"action": "update", "step": 1, "loss": 1.0})
    with (tmp_path / "log.jsonl").open("a") as stream:
        stream.write('{"action": "upd')
    run = RunFolder(tmp_path)
    run.log({"action": "update", "step": 1, "loss": 2.0})  # done again
    run.log({"action": "update", "step": 2, "loss": 3.0})
    assert [entry["loss"] for entry in run.entries()] == [2.0, 3.0]
