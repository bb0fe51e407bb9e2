"""`sekd average` as a user types it, and what it refuses."""

import os
from pathlib import Path

import pytest
import torch

from sekd_cli import cli
from sekd_cli.file_info import file_info
from sekd_cli.networks import CompactNetwork, DenseNetwork, PublishedNetwork
from sekd_cli.networks.averaging import average_networks
from sekd_cli.networks.weights_file import load_network, save_network, weights_digest

IMAGE = torch.rand(1, 1, 64, 96, generator=torch.Generator().manual_seed(0))
USAGE, BAD_INPUT, BAD_OUTPUT = 2, 4, 5  # exit codes


def network(seed: int, *, shallow: bool = True) -> DenseNetwork:
    torch.manual_seed(seed)
    made = CompactNetwork(shallow=shallow).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "0.safetensors", tmp_path / "1.safetensors"]
    for seed, path in enumerate(paths):
        save_network(path, network(seed), {})
    return paths


def test_the_mean_of_two_networks_is_between_them(two: list[Path], capfd: pytest.CaptureFixture[str]) -> None:
    output = two[0].parent / "new" / "mean.safetensors"
    assert cli.main(["average", *map(str, two), "-o", str(output), "--share", "1", "--share", "3"]) == 0
    assert capfd.readouterr().out == f"{output}\n"
    mean, *parts = (load_network(path).state_dict() for path in (output, *two))
    for name, value in mean.items():
        torch.testing.assert_close(value, (parts[0][name] + 3 * parts[1][name]) / 4, check_dtype=False)


@torch.no_grad()
def test_a_shallow_network_counts_as_a_deep_one_whose_other_pairs_add_nothing() -> None:
    shallow, deep = network(0), network(1, shallow=False)
    mean = average_networks([shallow, deep], [1.0, 0.0])
    assert mean.state_dict().keys() == deep.state_dict().keys()
    torch.testing.assert_close(mean(IMAGE).descriptor_maps, shallow(IMAGE).descriptor_maps)


def test_what_has_no_mean_is_refused(two: list[Path], capfd: pytest.CaptureFixture[str]) -> None:
    published, output = two[0].with_name("p.safetensors"), str(two[0].with_name("mean.safetensors"))
    save_network(published, PublishedNetwork(), {})
    first = str(two[0])
    for arguments, code, words in (
        ([first, str(published)], USAGE, "different networks (compact, published)"),
        ([first, str(two[1]), "--share", "1"], USAGE, "2 files and 1 --share"),
        ([first, "--share", "0"], USAGE, "not all of them 0"),
        ([first, "--share", "nan"], USAGE, "all of them finite"),
        ([first, "--share", "inf"], USAGE, "all of them finite"),
        ([first, str(two[0].with_name("none.safetensors"))], BAD_INPUT, "none.safetensors: no such weights file"),
    ):
        assert cli.main(["average", *arguments, "-o", output]) == code
        assert words in capfd.readouterr().err
    assert not Path(output).exists()


def test_a_file_that_is_there_stays_unless_told_otherwise(two: list[Path], capfd: pytest.CaptureFixture[str]) -> None:
    before = two[1].read_bytes()
    assert cli.main(["average", *map(str, two), "-o", str(two[1])]) == BAD_OUTPUT
    assert "--overwrite" in capfd.readouterr().err
    assert two[1].read_bytes() == before
    assert cli.main(["average", *map(str, two), "-o", str(two[1]), "--overwrite"]) == 0
    assert two[1].read_bytes() != before


def test_a_link_stays_one_and_no_pipe_is_replaced(two: list[Path], capfd: pytest.CaptureFixture[str]) -> None:
    folder = two[0].parent
    link, real, pipe = folder / "link", folder / "real", folder / "pipe"
    link.symlink_to(real)
    assert cli.main(["average", *map(str, two), "-o", str(link)]) == 0
    assert link.is_symlink()
    assert load_network(real).name == "compact"
    os.mkfifo(pipe)
    assert cli.main(["average", *map(str, two), "-o", str(pipe), "--overwrite"]) == BAD_OUTPUT
    assert "no ordinary file" in capfd.readouterr().err
    assert pipe.is_fifo()


def test_without_shares_all_count_alike_and_the_file_says_what_it_is_made_of(two: list[Path]) -> None:
    output = two[0].with_name("mean.safetensors")
    assert cli.main(["average", *map(str, two), "-o", str(output)]) == 0
    mean, *parts = (load_network(path).state_dict() for path in (output, *two))
    for name, value in mean.items():
        torch.testing.assert_close(value, (parts[0][name] + parts[1][name]) / 2, check_dtype=False)
    made_of = file_info(output)["training"]["mean_of"]
    assert made_of == f"0.5 of {weights_digest(two[0])}, 0.5 of {weights_digest(two[1])}"
