import math
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from full_disk import files_of_at_most
from torch import Tensor

from sekd_cli.errors import InputFileError
from sekd_cli.networks import CompactNetwork, DenseNetwork, PublishedNetwork
from sekd_cli.networks.weights_file import load_network, packaged_weights, save_network, weights_digest

BOTH_NETWORKS = pytest.mark.parametrize("kind", [CompactNetwork, PublishedNetwork])


# The authors' public checkpoint as it is: every layer's name written out, with its shape, and every batch norm's.
# fmt: off
AUTHORS_LAYERS: dict[str, tuple[int, ...]] = {
    "conv0.weight": (32, 1, 5, 5), "conv0.bias": (32,),
    "resblock0.0.convb.2.weight": (32, 32, 3, 3), "resblock0.0.convb.2.bias": (32,),
    "resblock0.1.convb.2.weight": (32, 32, 3, 3), "resblock0.1.convb.2.bias": (32,),
    "resblock0.2.convb.2.weight": (32, 32, 3, 3), "resblock0.2.convb.2.bias": (32,),
    "resblock1.0.convb.2.weight": (64, 32, 3, 3), "resblock1.0.convb.2.bias": (64,),
    "resblock1.0.conv_residual.weight": (64, 32, 1, 1),
    "resblock1.1.convb.2.weight": (64, 64, 3, 3), "resblock1.1.convb.2.bias": (64,),
    "resblock1.2.convb.2.weight": (64, 64, 3, 3), "resblock1.2.convb.2.bias": (64,),
    "resblock2.0.convb.2.weight": (128, 64, 3, 3), "resblock2.0.convb.2.bias": (128,),
    "resblock2.0.conv_residual.weight": (128, 64, 1, 1),
    "resblock2.1.convb.2.weight": (128, 128, 3, 3), "resblock2.1.convb.2.bias": (128,),
    "resblock2.2.convb.2.weight": (128, 128, 3, 3), "resblock2.2.convb.2.bias": (128,),
    "deconv0.2.weight": (64, 4, 3, 3), "deconv0.2.bias": (32,),
    "deconv1.2.weight": (128, 8, 3, 3), "deconv1.2.bias": (64,),
    "detector.weight": (2, 32, 3, 3), "detector.bias": (2,),
    "descriptor.convb.2.weight": (128, 128, 3, 3), "descriptor.convb.2.bias": (128,),
}
AUTHORS_NORMS = {
    "resblock0.0.convb.0": 32, "resblock0.1.convb.0": 32, "resblock0.2.convb.0": 32,
    "resblock1.0.convb.0": 32, "resblock1.1.convb.0": 64, "resblock1.2.convb.0": 64,
    "resblock2.0.convb.0": 64, "resblock2.1.convb.0": 128, "resblock2.2.convb.0": 128,
    "deconv0.0": 64, "deconv1.0": 128, "descriptor.convb.0": 128,
}
# fmt: on


def authors_state(*, counters: bool = True) -> dict[str, Tensor]:
    """A `state_dict` with the authors' names and random values."""
    random = torch.Generator().manual_seed(0)
    state = {name: 0.1 * torch.randn(shape, generator=random) for name, shape in AUTHORS_LAYERS.items()}
    for name, channels in AUTHORS_NORMS.items():
        for part in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.{part}"] = torch.rand(channels, generator=random) + 0.5
        if counters:
            state[f"{name}.num_batches_tracked"] = torch.tensor(7)
    return state


def save_authors(path: Path, state: dict[str, Tensor]) -> Path:
    torch.save({"epoch": 3, "state_dict": state}, path)
    return path


def random_network(kind: type[DenseNetwork]) -> DenseNetwork:
    torch.manual_seed(1)
    network = kind()
    for name, tensor in network.state_dict().items():
        if "running" in name:
            tensor.uniform_(0.5, 1.5)
    return network


@BOTH_NETWORKS
def test_a_network_comes_back_as_it_was_saved(kind: type[DenseNetwork], tmp_path: Path) -> None:
    network = random_network(kind)
    save_network(tmp_path / "one.safetensors", network, {"seed": 3})
    loaded = load_network(tmp_path / "one.safetensors")
    assert type(loaded) is kind
    assert not loaded.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert [path.name for path in tmp_path.iterdir()] == ["one.safetensors"]


def test_weights_may_be_read_by_whom_other_files_may_be_read(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    save_network(tmp_path / "one.safetensors", CompactNetwork(), {})
    assert (tmp_path / "one.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_file_of_many_kinds_of_name_is_read(tmp_path: Path) -> None:
    path = tmp_path / "poids été (1).bin"  # no suffix decides what a file is
    save_network(path, random_network(CompactNetwork), {})
    assert isinstance(load_network(path), CompactNetwork)


def test_the_digest_is_the_files_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert weights_digest(tmp_path / "abc") == expected


def test_the_authors_checkpoint_has_a_place_for_every_tensor(tmp_path: Path) -> None:
    state = authors_state()
    network = load_network(save_authors(tmp_path / "authors.pth", state))
    assert isinstance(network, PublishedNetwork)
    assert len(network.state_dict()) == len(state)
    ours = network.state_dict()
    for name, same in {
        "stem.weight": "conv0.weight",
        "stage0.2.body.0.running_mean": "resblock0.2.convb.0.running_mean",
        "stage1.0.body.2.bias": "resblock1.0.convb.2.bias",
        "stage2.0.shortcut.weight": "resblock2.0.conv_residual.weight",
        "up1.2.weight": "deconv1.2.weight",
        "up0.0.bias": "deconv0.0.bias",
        "detector.bias": "detector.bias",
        "descriptor.body.2.weight": "descriptor.convb.2.weight",
    }.items():
        assert torch.equal(ours[name], state[same]), name
    distinct = {tuple(tensor.flatten()[:4].tolist()) for name, tensor in ours.items() if "num_batches" not in name}
    assert len(distinct) == len(AUTHORS_LAYERS) + 4 * len(AUTHORS_NORMS)


def test_the_authors_names_written_out_here_make_the_published_number_of_parameters() -> None:
    convolutions = sum(math.prod(shape) for shape in AUTHORS_LAYERS.values())
    assert convolutions + 2 * sum(AUTHORS_NORMS.values()) == 661_762


def test_a_checkpoint_of_parallel_training_or_without_counters_is_the_same(tmp_path: Path) -> None:
    plain = load_network(save_authors(tmp_path / "plain.pth", authors_state()))
    parallel_state = {f"module.{name}": tensor for name, tensor in authors_state(counters=False).items()}
    parallel = load_network(save_authors(tmp_path / "parallel.pth", parallel_state))
    image = torch.rand(1, 1, 16, 16)
    with torch.no_grad():
        assert torch.equal(plain(image).score_logits, parallel(image).score_logits)


def test_missing_extra_and_misshapen_tensors_are_all_named(tmp_path: Path) -> None:
    state = authors_state()
    del state["resblock1.0.conv_residual.weight"]
    state["head.weight"] = torch.zeros(3)
    state["detector.weight"] = torch.zeros(65, 32, 3, 3)
    with pytest.raises(InputFileError) as caught:
        load_network(save_authors(tmp_path / "other.pth", state))
    message = str(caught.value)
    assert "other.pth" in message
    assert "missing stage1.0.shortcut.weight" in message
    assert "extra head.weight" in message
    assert "detector.weight (65, 32, 3, 3)" in message
    assert "\n" not in message


def test_tensors_missing_from_safetensors_are_named(tmp_path: Path) -> None:
    tensors = CompactNetwork().state_dict()
    del tensors["detector.bias"]
    safetensors.torch.save_file(tensors, tmp_path / "part.safetensors", {"network": "compact"})
    with pytest.raises(InputFileError, match=r"part\.safetensors.*missing detector\.bias"):
        load_network(tmp_path / "part.safetensors")


@pytest.mark.parametrize("metadata", [None, {"network": "superpoint"}, {"other": "compact"}])
def test_safetensors_of_no_network_of_ours_are_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    safetensors.torch.save_file({"a": torch.zeros(2)}, tmp_path / "alien.safetensors", metadata)
    with pytest.raises(InputFileError, match="compact, published"):
        load_network(tmp_path / "alien.safetensors")


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, crater: Path) -> None:
        self.crater = crater

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.crater), "w")


@pytest.mark.parametrize("by", ["torch", "pickle"])
def test_code_in_a_file_is_not_executed(tmp_path: Path, by: str, recwarn: pytest.WarningsRecorder) -> None:
    bomb, crater = tmp_path / "bomb.pth", tmp_path / "crater"
    content = {"state_dict": {"conv0.weight": Bomb(crater)}}
    if by == "torch":
        torch.save(content, bomb)
    else:
        bomb.write_bytes(pickle.dumps(content))
    with pytest.raises(InputFileError, match=r"bomb\.pth"):
        load_network(bomb)
    assert not crater.exists()
    assert not recwarn.list  # the error is all there is to say


def test_a_truncated_file_is_damaged_wherever_it_was_cut(tmp_path: Path, untrained_weights: Path) -> None:
    whole = untrained_weights.read_bytes()
    path = tmp_path / "cut.safetensors"
    for length in [0, 1, 8, 9, 100, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(InputFileError, match=r"cut\.safetensors"):
            load_network(path)


def test_a_truncated_checkpoint_of_the_authors_is_damaged(tmp_path: Path) -> None:
    whole = save_authors(tmp_path / "whole.pth", authors_state()).read_bytes()
    path = tmp_path / "cut.pth"
    for length in [1, 100, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(InputFileError, match=r"cut\.pth"):
            load_network(path)


@pytest.mark.parametrize(
    "content",
    [
        b"not weights\n",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        struct.pack("<Q", 10) + b"{" + bytes(20),
        struct.pack("<Q", 2**62) + b"{}",
    ],
    ids=["text", "image", "no JSON", "endless header"],
)
def test_a_file_of_neither_kind_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other.bin").write_bytes(content)
    with pytest.raises(InputFileError, match=r"other\.bin"):
        load_network(tmp_path / "other.bin")


@pytest.mark.parametrize("content", [torch.zeros(3), {"weights": {}}, {"state_dict": {"epoch": 3}}, [1, 2]])
def test_a_checkpoint_without_a_state_dict_of_tensors_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(InputFileError, match="state_dict"):
        load_network(tmp_path / "other.pth")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="no such weights file"):
        load_network(tmp_path / "missing.safetensors")
    with pytest.raises(InputFileError, match=r"a folder; give a \.safetensors of sekd train"):
        load_network(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.touch()
    with pytest.raises(InputFileError, match=f"{tmp_path}: a folder; give {weights}"):
        load_network(tmp_path)  # a run's
    with pytest.raises(InputFileError, match=r"give a \.safetensors"):
        load_network(tmp_path / ("z" * 300))  # can't be looked up, as in a folder that isn't ours


def test_the_packaged_weights_lie_in_the_package() -> None:
    assert packaged_weights().name == "sekd.safetensors"
    assert (packaged_weights().parent / "__init__.py").is_file()


@pytest.mark.parametrize("shallow", [False, True])
def test_weights_say_how_deep_their_network_is(tmp_path: Path, shallow: bool) -> None:
    network = CompactNetwork(shallow=shallow)
    save_network(tmp_path / "w.safetensors", network, {})
    loaded = load_network(tmp_path / "w.safetensors")
    assert loaded.state_dict().keys() == network.state_dict().keys()


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(broken: float, tmp_path: Path) -> None:
    network = CompactNetwork()
    network.level8[0][0].weight.data[3, 2, 1, 0] = broken
    save_network(tmp_path / "mine.safetensors", network, {})
    with pytest.raises(
        InputFileError, match=r"mine\.safetensors: level8\.0\.0\.weight holds values that are not finite"
    ):
        load_network(tmp_path / "mine.safetensors")


def test_weights_with_negative_variances_are_refused(tmp_path: Path) -> None:
    network = CompactNetwork()
    network.level2[0][1].running_var[3] = -0.5
    save_network(tmp_path / "mine.safetensors", network, {})
    with pytest.raises(InputFileError, match=r"mine\.safetensors: level2\.0\.1\.running_var holds negative variances"):
        load_network(tmp_path / "mine.safetensors")


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.bool, torch.int32])
def test_weights_of_a_kind_that_holds_no_plain_numbers_are_refused(kind: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    state = CompactNetwork().state_dict()
    state["level2.0.0.weight"] = state["level2.0.0.weight"].to(kind)
    safetensors.torch.save_file(state, path, {"network": "compact"})
    with pytest.raises(InputFileError, match=r"mine\.safetensors: level2\.0\.0\.weight holds no plain numbers"):
        load_network(path)


@pytest.mark.parametrize(
    "change", [Tensor.to_sparse, lambda weight: weight.to("meta"), Tensor.cfloat], ids=["sparse", "meta", "complex"]
)
def test_a_checkpoint_whose_tensors_hold_no_plain_numbers_is_refused(
    change: Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    state = PublishedNetwork().state_dict()
    state["stem.weight"] = change(state["stem.weight"])
    torch.save({"state_dict": state}, tmp_path / "other.pth")
    with pytest.raises(InputFileError, match=r"other\.pth: stem\.weight holds no plain numbers"):
        load_network(tmp_path / "other.pth")


def test_weights_too_large_for_the_network_are_refused(tmp_path: Path) -> None:
    state = CompactNetwork().state_dict()
    state["detector.bias"] = torch.full_like(state["detector.bias"], 1e300, dtype=torch.float64)
    safetensors.torch.save_file(state, tmp_path / "mine.safetensors", {"network": "compact"})
    with pytest.raises(InputFileError, match=r"detector\.bias holds values that are not finite"):
        load_network(tmp_path / "mine.safetensors")


def test_weights_that_a_disk_has_no_room_for_leave_the_old_ones_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    save_network(path, CompactNetwork(), {})
    before = path.read_bytes()
    with files_of_at_most(1 << 16), pytest.raises(OSError, match="too large"):
        save_network(path, CompactNetwork(), {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
