"""What `sekd train` makes of its options, before anything is trained."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from drawn import draw_photographs

from sekd_cli.commands import train as command
from sekd_cli.errors import UsageError
from sekd_cli.training import self_evolution

OPTIONS = {
    "config": "default",
    "network": None,
    "rounds": None,
    "steps": None,
    "last_steps": None,
    "seed": None,
    "minutes": None,
    "changes": (),
    "without": (),
}


def test_options_become_settings(tmp_path: Path) -> None:
    short = command._settings(OPTIONS | {"steps": 7})
    assert (short.steps_per_update, short.last_steps) == (7, 7)
    both = command._settings(OPTIONS | {"steps": 7, "last_steps": 9})
    assert (both.steps_per_update, both.last_steps) == (7, 9)
    (tmp_path / "mine.toml").write_text("seed = 5\n")
    changed = command._settings(
        OPTIONS
        | {
            "config": str(tmp_path / "mine.toml"),
            "changes": ("batch-size = 4", "graded=true", "zoom=2"),
            "without": ("affine-adaptation",),
        }
    )
    assert (changed.seed, changed.batch_size, changed.graded, changed.zoom) == (5, 4, True, 2.0)
    assert not changed.affine_adaptation


@pytest.mark.parametrize(
    ("workers", "threads", "ranks", "expected"),
    [
        (None, None, "1", (2, 6)),
        (None, None, "2", (1, 3)),
        (3, None, "1", (3, 5)),
        (None, 2, "1", (2, 2)),
        (0, 1, "1", (0, 1)),
    ],
)
def test_cores_are_shared_between_the_network_and_its_data(
    workers: int | None, threads: int | None, ranks: str, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []
    monkeypatch.setattr(command, "available_cores", lambda: 8)
    monkeypatch.setattr("sekd_cli.device.set_threads", given.append)
    monkeypatch.setattr("sekd_cli.device.keep_freed_memory", lambda: None)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    assert (command._share_cores(torch.device("cpu"), workers, threads), *given) == expected


def test_the_pause_is_in_minutes_and_the_cache_where_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Any] = {}

    def evolution(*_: object, **named: Any) -> None:
        told.update(named)
        raise UsageError("enough")

    monkeypatch.setattr(self_evolution, "SelfEvolution", evolution)
    photos, cache = draw_photographs(tmp_path / "photos", 2), tmp_path / "cache"
    options = ["--workers=0", "--threads=1", "--pause-after=5", f"--cache={cache}"]
    result = CliRunner().invoke(command.train, ["--data", str(photos), "-o", str(tmp_path / "run"), *options])
    assert isinstance(result.exception, UsageError)
    assert told["pause"] - told["started"] == pytest.approx(300)
    assert (cache / "photographs.bin").is_file()


def test_a_run_that_was_moved_takes_its_photographs_along_and_one_that_hardly_learned_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    evolution = SimpleNamespace(run=lambda: True, learner=SimpleNamespace(step=3), seconds=1.0)
    monkeypatch.setattr(self_evolution, "SelfEvolution", lambda *_, **__: evolution)
    photos, run, moved = draw_photographs(tmp_path / "photos", 2), tmp_path / "run", tmp_path / "moved"
    options = ["--workers=0", "--threads=1"]
    assert CliRunner().invoke(command.train, ["--data", str(photos), "-o", str(run), *options]).exit_code == 0
    assert "hardly began to learn" in caplog.text
    run.rename(moved)
    assert CliRunner().invoke(command.train, ["--resume", str(moved), *options]).exit_code == 0
    assert (moved / "photographs.bin").is_file()
    assert not run.exists()
    result = CliRunner().invoke(command.train, ["--resume", str(run)])
    assert str(result.exception) == f"{run}: holds no run; check the path"
