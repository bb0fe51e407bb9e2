"""A run's folder: what may go on in it, and what may not; and what its log survives."""

import errno
import fcntl
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from full_disk import files_of_at_most

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
    with pytest.raises(OutputError, match=r"\(of other photographs\)"):
        run.begin(SETTINGS, ["b"], tmp_path)
    with pytest.raises(OutputError, match=r"\(rounds 2 there, 3 now\)"):
        run.begin(replace(SETTINGS, rounds=3), ["a"], tmp_path)


def test_a_run_that_came_to_nothing_is_replaced_and_a_finished_one_is_not(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.begin(SETTINGS, ["nowhere"], tmp_path)
    run.begin(replace(SETTINGS, rounds=3), ["photos"], tmp_path)
    assert run.settings().rounds == 3
    assert run.data()["data"] == ["photos"]
    (run.path / "model.safetensors").touch()  # all that is left of a run that was cleared up
    with pytest.raises(OutputError, match="rounds 3 there, 2 now"):
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


@pytest.mark.parametrize("name", ["model.safetensors", "best.safetensors"])
def test_weights_of_no_run_are_in_nobodys_way_unless_they_have_the_name_of_a_runs(name: str, tmp_path: Path) -> None:
    (tmp_path / "sekd.safetensors").touch()
    RunFolder(tmp_path).check_what_is_left()
    RunFolder(tmp_path).begin(SETTINGS, ["a"], tmp_path)
    assert RunFolder(tmp_path).settings() == SETTINGS
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / name).touch()
    with pytest.raises(OutputError, match=f"{name}: a new run would replace it"):
        RunFolder(tmp_path / "other").check_what_is_left()


@pytest.mark.parametrize(("name", "text"), [("config.toml", "title = 'mine'"), ("data.json", '{"mine": 1}')])
def test_files_of_somebody_else_are_not_replaced(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(OutputError, match=f"{name}: not of a run"):
        RunFolder(tmp_path).begin(SETTINGS, ["a"], tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == [text]


def test_a_run_is_the_same_from_any_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = begun(tmp_path / "run", settings=replace(SETTINGS, start="first.safetensors"))
    assert run.settings().start == str(tmp_path / "first.safetensors")
    assert run.data()["cache"] == str(tmp_path / "cache")
    run.begin(replace(SETTINGS, start="first.safetensors"), ["a"], tmp_path)  # the same command again


def test_what_is_decoded_into_the_run_folder_goes_where_it_goes(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.begin(SETTINGS, ["a"], run.path)
    assert run.data()["cache"] == "."
    run.check_photographs("digest")
    assert RunFolder(run.path.rename(tmp_path / "moved")).data()["cache"] == "."


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
    run = RunFolder(tmp_path / "runs" / "run")
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


def test_a_file_system_without_locks_is_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    done = []
    with RunFolder(tmp_path).locked():
        done.append(True)
    assert done


def test_a_folder_that_can_not_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="its folder is a file"), RunFolder(tmp_path / "file" / "run").locked():
        pass


def test_steps_that_a_kill_lost_and_the_clock_kept_from_being_redone_are_not_counted(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.log({"action": "begin", "run_step": 0})
    for step in (1, 2, 3):
        run.log({"action": "update", "round": 0, "step": step, "run_step": step})
    for round_, score in ((0, 0.1), (1, 0.2), (0, 0.3)):  # the first is done again
        run.log({"action": "validation", "round": round_, "score": score})
    run.log({"action": "begin", "run_step": 1})
    run.log({"action": "update", "round": 1, "step": 1, "run_step": 2})
    entries = run.entries()
    assert [(entry["round"], entry["step"]) for entry in entries if entry["action"] == "update"] == [(0, 1), (1, 1)]
    assert [entry["score"] for entry in entries if entry["action"] == "validation"] == [0.2, 0.3]


def test_a_line_of_the_log_that_a_kill_tore_costs_no_other(tmp_path: Path) -> None:
    RunFolder(tmp_path).log({"action": "update", "step": 1, "loss": 1.0})
    with (tmp_path / "log.jsonl").open("a") as stream:
        stream.write('{"action": "upd')
    run = RunFolder(tmp_path)
    run.log({"action": "update", "step": 1, "loss": 2.0})  # done again
    run.log({"action": "update", "step": 2, "loss": 3.0})
    assert [entry["loss"] for entry in run.entries()] == [2.0, 3.0]


def test_a_log_on_a_full_disk_is_told_by_its_name_and_goes_on_later(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    whole = {"action": "begin", "round": 1, "run_step": 0}
    run.log(whole)
    words, room = r"log\.jsonl: larger than this file system or process may write", 5
    with files_of_at_most((run.path / "log.jsonl").stat().st_size + room), pytest.raises(OutputError, match=words):
        run.log({"action": "update", "round": 1, "run_step": 10})
    later = {"action": "update", "round": 1, "run_step": 20}
    RunFolder(run.path).log(later)
    assert run.entries() == [whole, later]
