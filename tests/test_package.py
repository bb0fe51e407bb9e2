"""What is promised of the package: files, documentation and installation."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import click
import h5py
import numpy as np
import pytest

import sekd_cli
from sekd_cli import errors, stored_features, stored_matches
from sekd_cli.config import MODELS
from sekd_cli.patch_alignment import Alignment

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
OTHER_PROGRAMS = {"--array", "--database_path", "--image_path", "--nproc-per-node", "--output_path", "--shm-size"}
SHIPPED = ["sekd_cli", "weights", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"]


def setup_cfg() -> configparser.ConfigParser:
    parsed = configparser.ConfigParser()
    parsed.read(ROOT / "setup.cfg", encoding="utf-8")
    return parsed


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command with what a user types to get it, subcommands of subcommands included."""
    from sekd_cli.cli import cli

    def below(typed: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                found = command.get_command(context, name)
                assert found is not None
                yield from below(f"{typed} {name}", found)
        else:
            yield typed, command

    yield from below("sekd", cli)


def test_every_folder_of_modules_is_in_the_package() -> None:
    folders = {path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in ROOT.glob("sekd_cli/**/*.py")}
    listed = set(setup_cfg()["options"]["packages"].split())
    assert listed == folders | {"sekd_cli.weights"}


def test_every_command_tells_what_it_does_with_an_example() -> None:
    for typed, command in commands():
        text = command.help or ""
        assert text.split("\n\n")[0].strip().endswith("."), f"{typed}: begins with no sentence"
        assert f"{typed} " in text + (command.epilog or ""), f"{typed}: no example in its help"


def test_every_option_tells_what_it_is_for() -> None:
    silent = [
        f"{typed} {parameter.opts[0]}"
        for typed, command in commands()
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.help
    ]
    assert not silent


def test_readme_knows_every_command() -> None:
    for typed, _ in commands():
        alone = typed.split()[-1]  # a subcommand may be told of by its own name, in its command's section
        assert f"{typed} " in README or f"`{alone}`" in README, f"README says nothing of {typed}"


def test_readme_knows_every_option_it_shows() -> None:
    from sekd_cli.cli import cli

    everything = [cli, *(command for _, command in commands())]
    known = {name for one in everything for option in one.params for name in (*option.opts, *option.secondary_opts)}
    shown = set(re.findall(r"(?<![\w-])--[a-z][a-z_-]+", README))
    assert shown - OTHER_PROGRAMS <= known | {"--help"}


def test_readme_has_the_defaults_of_extract() -> None:
    extract = dict(commands())["sekd extract"]
    told = dict(re.findall(r"^\| `(--[a-z-]+)` \| ([^|]*?) ?\|", README, flags=re.MULTILINE))
    defaults = {option.opts[0]: option.get_default(click.Context(extract)) for option in extract.params}
    assert len(told) > 15
    assert told.keys() <= defaults.keys()
    known = {name: str(value) for name, value in defaults.items() if value and isinstance(value, int | str)}
    assert {name: told.get(name, value) for name, value in known.items()} == known


@pytest.mark.parametrize("method", ["sekd", "RootSIFT", "ORB"])
def test_readme_has_the_figures_of_results(method: str) -> None:
    results = (ROOT / "docs" / "RESULTS.md").read_text(encoding="utf-8")

    def cells(text: str, heading: str) -> list[str]:
        row = re.search(rf"## {heading}\n.*?^\| {method} \| (.*?) \|$", text, re.MULTILINE | re.DOTALL | re.IGNORECASE)
        assert row is not None
        return row[1].split(" | ")

    homographies = cells(results, "Homographies, 500 keypoints")
    pose = cells(results, "Relative pose, 2048 keypoints")
    ratio = cells(results, "Speed, 2048 keypoints, one thread")[5]
    shares = homographies[6].split("/")[1], homographies[0], pose[0]
    assert cells(README, "Try it") == [*(f"{share} %" for share in shares), f"{float(ratio):.2g}"]


def test_commands_in_documentation_have_the_options_they_are_given() -> None:
    known = dict(commands())
    pages = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("EXPORT", "RECIPES", "TRAINING"))]
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    shell = "".join(re.findall(r"^```sh\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
    helps = "\n".join(f"{command.help}\n{command.epilog}" for command in known.values())
    given = re.findall(r"(?:\bsekd|-m sekd_cli) ([a-z][^|;&>#\n]*)", f"{shell}\n{helps}")
    parsed = 0
    for words in (["sekd", *line.replace("'", "").split()] for line in given):
        typed = next((" ".join(words[:count]) for count in (3, 2) if " ".join(words[:count]) in known), None)
        if typed is not None:  # else it is of a sentence
            command = known[typed]
            command.make_parser(click.Context(command)).parse_args(words[len(typed.split()) :])
            parsed += 1
    assert parsed > 80


def test_the_pages_that_documentation_links_to_are_there() -> None:
    for page in [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.md"), *ROOT.glob("weights/*.md")]:
        for target, heading in re.findall(r"\]\(([^)#:]*)#?([^)#:]*)\)", page.read_text(encoding="utf-8")):
            linked = page.parent / target if target else page
            assert linked.exists(), f"{page.name} links to {target}"
            if heading:
                headings = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), flags=re.MULTILINE)
                slugs = [
                    re.sub(r"[^\w -]", "", text).lower().replace(" ", "-") for text in headings
                ]  # as GitHub has it
                assert heading in slugs, f"{page.name} links to {target}#{heading}"


def test_readme_has_the_exit_codes_of_the_errors() -> None:
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", README, flags=re.MULTILINE)}
    raised = {kind.exit_code for kind in vars(errors).values() if isinstance(kind, type)}
    assert documented >= {0} | raised


def test_architecture_has_a_place_for_every_module() -> None:
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    layers = re.search(r"^```\ncli, .*?^```$", text, flags=re.MULTILINE | re.DOTALL)
    assert layers is not None
    named = set(re.findall(r"`(?:[a-z]+/)*([a-z0-9_]+)(?:\.py)?`", text)) | set(re.findall(r"\w+", layers[0]))
    of_commands = {typed.split()[1] for typed, _ in commands()}  # a file each, by their names
    modules = {path.stem for path in ROOT.glob("sekd_cli/**/*.py")} - {"__init__"}
    assert not modules - of_commands - named


def test_architecture_names_no_file_that_is_gone() -> None:
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    files = [path.relative_to(ROOT).as_posix() for path in ROOT.glob("*/**/*.py")]
    gone = [
        name
        for name in re.findall(r"`([\w/]+\.py)`", text)
        if not any(f"/{file}".endswith(f"/{name}") for file in files)
    ]
    assert not gone


def test_readme_has_all_that_files_hold(tmp_path: Path) -> None:
    keypoints, scores = np.ones((3, 2)), np.ones(3)
    features = stored_features.StoredFeatures(
        keypoints=keypoints,
        scores=scores,
        descriptors=np.ones((3, 4)),
        image_size=(9, 9),
        scales=scores,
        turned=np.ones((3, 3, 4)),
        found=keypoints,
    )
    alignment = Alignment(np.ones((3, 2)), np.ones((3, 2, 2)), scores)
    with h5py.File(tmp_path / "all.h5", "w") as file:
        stored_features.write_group(file.create_group("image"), features, None, "float32")
        for name in MODELS:
            matches = stored_matches.StoredMatches(
                matches0=np.arange(3), scores0=scores, model_name=name, model=np.eye(3), alignment=alignment
            )
            stored_matches.write_group(file.create_group(f"pairs/{name}"), matches)
        names: list[str] = []
        file.visititems(lambda name, value: names.append(name) if isinstance(value, h5py.Dataset) else None)
    assert len(names) == 7 + 3 * 6
    assert not [name for name in names if f"`{Path(name).name}`" not in README.split("## Files")[1]]


def test_ci_runs_the_test_command_of_readme() -> None:
    command = re.search(r"^(pip install .*-e .*) && (python -m pytest)$", README, flags=re.MULTILINE)
    assert command is not None
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for half in command.groups():
        assert re.search(f"^{re.escape(half)}$", ci.replace("pip install -q", "pip install"), flags=re.MULTILINE), half
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_changelog_has_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[?([^\]\s]+)", changelog, flags=re.MULTILINE)
    assert versions[0] == "Unreleased"
    released = [version for version in versions if version != "Unreleased"]
    assert not released or released[0] == sekd_cli.__version__


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a build needs."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder)
    return folder


def packaged_weights_seen_from(folder: Path, *, python_path: Path) -> Path:
    program = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]  # this very checkout's
from sekd_cli.networks.weights_file import packaged_weights
print(packaged_weights().resolve())
"""
    environment = {**os.environ, "PYTHONPATH": str(python_path), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return Path(done.stdout.strip())


def test_the_wheel_has_every_module_and_the_weights(checkout: Path, tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77", reason="what pyproject.toml asks for, and pip would fetch")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, checkout]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("sekd-*.whl")
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    modules = {path.relative_to(checkout) for path in checkout.glob("sekd_cli/**/*.py")}
    assert modules <= {path.relative_to(unpacked) for path in unpacked.rglob("*.py")}
    assert (unpacked / "sekd_cli" / "py.typed").is_file()
    found = packaged_weights_seen_from(tmp_path, python_path=unpacked)
    assert found == (unpacked / "sekd_cli" / "weights" / "sekd.safetensors").resolve()
    assert found.read_bytes() == (checkout / "weights" / "sekd.safetensors").read_bytes()


def test_a_checkout_that_is_not_installed_finds_its_weights(checkout: Path, tmp_path: Path) -> None:
    found = packaged_weights_seen_from(tmp_path, python_path=checkout)
    assert found == (checkout / "weights" / "sekd.safetensors").resolve()
    assert found.is_file()


def test_the_example_pairs_name_files_that_are_there(examples: Path) -> None:
    pairs = [line.split() for line in (examples / "pairs.txt").read_text(encoding="utf-8").splitlines()]
    assert pairs
    for pair in pairs:
        assert len(pair) == 2
        for name in pair:
            assert (examples / name).is_file()


def test_every_benchmark_finds_what_it_imports() -> None:
    program = "import runpy, sys\nfor path in sys.argv[1:]: runpy.run_path(path, run_name='imported')"
    found = sorted(str(path) for path in (ROOT / "benchmarks").glob("*.py"))
    environment = os.environ | {"PYTHONPATH": str(ROOT / "benchmarks")}  # what a script has of its own folder
    subprocess.run([sys.executable, "-c", program, *found], check=True, env=environment, cwd=ROOT)
    assert found
