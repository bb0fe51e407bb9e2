"""Ctrl-C at chosen places of `sekd extract` and `sekd match`."""

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from drawn_features import write_views
from hostile_images import drawn, encoded, write_files

from sekd_cli import cli
from sekd_cli.feature_file import FeatureReader
from sekd_cli.match_file import MatchReader
from sekd_cli.networks import weights_file
from sekd_cli.pairs import exhaustive, format_pair
from sekd_cli.staged_file import StagedFile

NAMES = [f"{index}.png" for index in range(6)]
PARTS = 5  # into which the calls of a function are divided; an interrupt comes as each begins


@pytest.fixture(params=["extract", "match"])
def command(request: pytest.FixtureRequest, tmp_path: Path, untrained_weights: Path) -> list[str]:
    """Of a few tiny images, or of all their pairs, but for its output."""
    options = ["--device", "cpu", "--threads", "2"]
    if request.param == "match":
        features = write_views(tmp_path / "feats.h5", NAMES)
        (tmp_path / "pairs.txt").write_text("".join(map(format_pair, exhaustive(NAMES))), encoding="utf-8")
        return ["match", str(tmp_path / "pairs.txt"), "--features", str(features), *options, "-o"]
    write_files(tmp_path / "photos", {name: encoded(drawn(32, 48), "PNG") for name in NAMES})
    weights = ["--weights", str(untrained_weights), "--threshold", "0"]
    return ["extract", str(tmp_path / "photos"), *weights, *options, "-o"]


def stored(path: Path) -> int:
    """How many images or pairs are in a file, if there is one."""
    if not path.exists():
        return 0
    if "extract" in path.name:
        with FeatureReader(path) as features:
            return len(features.names())
    with MatchReader(path) as matches:
        return len(list(matches.pairs()))


class Interrupt:
    """Comes at the n-th call that the main thread makes of a function, once that has done its work."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.left, self.calls = function, 0, 0

    def method(self) -> Callable[..., Any]:
        """The function that interrupts, in place of the one that doesn't."""

        def called(*arguments: Any) -> Any:
            done = self.function(*arguments)
            if threading.get_ident() == threading.main_thread().ident:
                self.calls += 1
                self.left -= 1
                if self.left == 0:
                    signal.raise_signal(signal.SIGINT)
            return done

        return called


@pytest.mark.parametrize(("owner", "name"), [(threading.Condition, "__enter__"), (StagedFile, "write")])
def test_an_interrupt_leaves_no_lock_held_and_the_same_command_goes_on(
    owner: type, name: str, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt = Interrupt(getattr(owner, name))
    monkeypatch.setattr(owner, name, interrupt.method())
    assert cli.main([*command, str(tmp_path / f"{command[0]}.h5")]) == 0
    whole, calls = stored(tmp_path / f"{command[0]}.h5"), interrupt.calls
    assert whole
    assert calls
    for part in range(PARTS):
        path = tmp_path / f"{command[0]}{part}.h5"
        interrupt.left = 1 + part * calls // PARTS
        code = cli.main([*command, str(path)])
        assert code == (130 if interrupt.left <= 0 else 0)
        assert stored(path) <= whole
        interrupt.left = 0  # how often threads wait differs: it may not have come yet
        assert cli.main([*command, str(path)]) == 0
        assert stored(path) == whole


def test_an_interrupt_while_weights_are_read_is_no_damage_to_them(
    tmp_path: Path, untrained_weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_files(tmp_path / "photos", {"a.png": encoded(drawn(32, 48), "PNG")})
    opened = weights_file.safetensors.safe_open

    def interrupted(*arguments: Any, **options: Any) -> Any:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise weights_file.safetensors.SafetensorError("interrupted") from error
        return opened(*arguments, **options)

    monkeypatch.setattr(weights_file.safetensors, "safe_open", interrupted)
    command = ["extract", str(tmp_path / "photos"), "--weights", str(untrained_weights), "-o", str(tmp_path / "f.h5")]
    assert cli.main(command) == 130
    assert "damaged" not in capsys.readouterr().err
