"""What the tests share: the example photographs, an untrained network on disk, and quiet, repeatable settings."""

import signal
from pathlib import Path

import cv2
import hypothesis
import pytest
import torch
from drawn import cached_photographs
from drawn_features import NAMES, write_views

from sekd_cli.networks import CompactNetwork
from sekd_cli.networks.weights_file import save_network
from sekd_cli.training.photographs import Photographs
from sekd_cli.training.photometric import LUMA

EXAMPLES = Path(__file__).parents[1] / "examples"

signal.signal(signal.SIGINT, signal.default_int_handler)  # where tests run in the background a shell has it ignored
hypothesis.settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    suppress_health_check=[
        hypothesis.HealthCheck.too_slow,  # on a busy machine
        hypothesis.HealthCheck.function_scoped_fixture,
    ],
)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def examples() -> Path:
    """The folder of example photographs."""
    return EXAMPLES


@pytest.fixture(scope="session")
def photograph() -> torch.Tensor:
    """A real photograph, grey, (1, 1, 320, 448) in [0, 1]."""
    pixels = cv2.imread(str(EXAMPLES / "china.jpg"), cv2.IMREAD_GRAYSCALE)[:320, :448]
    return torch.from_numpy(pixels)[None, None].float() / 255


@pytest.fixture(scope="session")
def untrained_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file of the compact network as it was initialised: for what doesn't depend on the numbers."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "untrained.safetensors"
    save_network(path, CompactNetwork(), {"note": "not trained"})
    return path


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Photographs:
    """Five drawn photographs as training has them."""
    return cached_photographs(tmp_path_factory.mktemp("photographs"), 5)


@pytest.fixture
def even_light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both views of training's pairs are as grey as the photograph, in the same light."""
    monkeypatch.setattr("sekd_cli.training.dataset.change_light", lambda images, light: images)
    mix = torch.tensor(LUMA) / 255
    monkeypatch.setattr("sekd_cli.training.dataset.draw_mix", lambda count, generator: mix.expand(count, 3))


@pytest.fixture
def in_a_folder_with_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder is an empty one but for `feats.h5`, which has a view for each of NAMES."""
    monkeypatch.chdir(tmp_path)
    write_views(tmp_path / "feats.h5", NAMES)
