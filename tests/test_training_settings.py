"""The settings of a run: there and back through TOML, and what is refused."""

import math
from dataclasses import fields, replace
from pathlib import Path

import pytest

from sekd_cli.errors import InputFileError, UsageError
from sekd_cli.training.settings import PRESETS, TrainingSettings, read_settings


def test_settings_survive_toml_and_wrong_ones_are_named(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    for settings in PRESETS.values():
        file.write_text(settings.as_toml())
        assert read_settings(file) == settings
    file.write_text('preset = "paper"\nrounds = 2\n')
    assert read_settings(file) == replace(PRESETS["paper"], rounds=2)
    file.write_text("rounds = 2\n")
    assert read_settings(file) == replace(PRESETS["default"], rounds=2)
    for wrong, message in (
        ("colour = 1", "no such training setting: colour"),
        ('rounds = "many"', "rounds is 'many'"),
        ('preset = ["paper"]', "no such preset"),
        ("learning_rate = true", "learning_rate is True"),
        (f"learning_rate = {10**400}", "learning_rate is too large"),
    ):
        file.write_text(wrong)
        with pytest.raises(UsageError, match=message):
            read_settings(file)
    for unreadable in ("rounds = [", f"rounds = {'9' * 5000}", "rounds = " + "[" * 100_000):
        file.write_text(unreadable)
        with pytest.raises(InputFileError, match=r"config\.toml"):
            read_settings(file)
    with pytest.raises(InputFileError, match="no such file"):
        read_settings(tmp_path / "none.toml")


@pytest.mark.parametrize("start", ['a "quoted" name', "back\\slash", "two\nlines", "delete\x7f", "größer 大"])
def test_any_path_of_a_start_survives_toml(start: str, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(TrainingSettings(start=start).as_toml(), encoding="utf-8")
    assert read_settings(file).start == start


def test_a_start_that_toml_can_not_hold_is_refused() -> None:
    with pytest.raises(UsageError, match="valid UTF-8"):
        TrainingSettings(start="\udcff")


@pytest.mark.parametrize("name", [field.name for field in fields(TrainingSettings) if field.type is float])
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e300])
def test_every_number_must_be_finite(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=name):
        replace(PRESETS["default"], **{name: value})


@pytest.mark.parametrize("name", [field.name for field in fields(TrainingSettings) if field.type is int])
def test_no_count_is_larger_than_any_of_use(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        replace(PRESETS["default"], **{name: 10**23})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("seed", -1), ("seed", 2**64), ("learning_rate", -1.0), ("detected_points", -1), ("photograph_size", 0)),
        *(("average_decay", 2.0), ("gradient_norm", -1.0), ("gradient_norm", 0.0), ("warmup_steps", -10)),
        *(("random_points", -3), ("reliability_window_stride", 0), ("reliability_window", -1), ("rounds", 0)),
        *(("adaptation_threshold", 1.5), ("adaptation_threshold", 1.0), ("target_sigma", -1.0), ("label_border", -1)),
        *(("last_steps", 0), ("label_nms_radius", 101), ("shear", 90.0), ("zoom", 0.5), ("height", 32)),
        *(("batch_size", 1), ("validation_share", 0.5), ("photographs_per_round", 0.0), ("octaves", 5)),
        *(("similarity_scale", 101.0), ("photograph_size", 95), ("rotation", 1e300), ("zoom", 101.0)),
        *(("stretch", 1e30), ("farthest", 1e30), ("closest", 1e-30), ("tilt", 0.8), ("reliability_window", 4)),
        *(("low_level_weight", 1.1), ("own_keypoints", 0), ("parallax_share", 1.5)),
        *(("sharp_zoom", -0.1), ("sharp_zoom", 0.6)),
    ],
)
def test_a_setting_out_of_its_range_is_named(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=name):
        replace(PRESETS["default"], **{name: value})


def test_a_view_is_a_multiple_of_the_stride_at_every_octave() -> None:
    replace(PRESETS["default"], octaves=1, height=288)
    with pytest.raises(UsageError, match="multiples of 64"):
        replace(PRESETS["default"], octaves=2, height=288)


def test_a_descriptor_needs_points_to_learn_from() -> None:
    with pytest.raises(UsageError, match="detected_points, random_points"):
        replace(PRESETS["default"], detected_points=0, random_points=0)


def test_what_hides_a_view_is_another_photograph() -> None:
    with pytest.raises(UsageError, match="hidden_share: needs other_surroundings"):
        replace(PRESETS["default"], hidden_share=0.1, other_surroundings=False)
