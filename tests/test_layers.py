"""The architecture as laws: imports point downward, and some knowledge lives in one place only."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import sekd_cli

PACKAGE = Path(sekd_cli.__file__).parent
MIDDLE = "extraction"  # the layer of images, files, matching, and of any module that isn't named below

# From the ground up. A module may import from its own layer and from those before it.
LAYERS = [
    {"errors"},
    {"config"},
    {"coordinates"},
    {"geometry"},
    {"networks"},
    {"detection"},
    {"features"},
    {MIDDLE},
    {"training", "evaluation", "export", "api"},
    {"commands"},
    {"cli", "__main__"},
]
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
EVERY_SOURCE = pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())


def layer(part: str) -> int:
    """The place of a top-level module or subpackage in LAYERS."""
    return next((rank for rank, parts in enumerate(LAYERS) if part in parts), LAYERS.index({MIDDLE}))


def imported_modules(path: Path) -> Iterator[str]:
    """Full names of what a file imports anywhere, functions included; `from a import b` gives `a.b`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; name the whole module"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def own_parts(path: Path) -> set[str]:
    """The top-level modules and subpackages of ours that a file imports."""
    names = [name.split(".") for name in imported_modules(path)]
    own = {name[1] for name in names if name[0] == "sekd_cli" and len(name) > 1}
    return {name for name in own if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()}


@EVERY_SOURCE
def test_imports_point_downward_only(path: Path) -> None:
    here = part_of(path)
    upward = {part for part in own_parts(path) if layer(part) > layer(here)}
    assert not upward, f"{here} is below {', '.join(sorted(upward))}"


def test_no_two_parts_import_each_other_even_by_a_detour() -> None:
    imports: dict[str, set[str]] = {}
    for path in SOURCES:
        imports.setdefault(part_of(path), set()).update(own_parts(path) - {part_of(path)})

    TopologicalSorter(imports).prepare()  # raises CycleError, with their names


@EVERY_SOURCE
def test_only_the_edge_draws(path: Path) -> None:
    outside = {name.split(".")[0] for name in imported_modules(path)}
    if part_of(path) not in {"cli", "commands", "__main__"}:
        assert not outside & {"click", "rich"}


@EVERY_SOURCE
def test_only_geometry_resamples(path: Path) -> None:
    if path.name != "geometry.py":
        assert "align_corners" not in path.read_text(encoding="utf-8")


def test_the_command_line_is_there_before_torch_is_loaded() -> None:
    program = "import sys, sekd_cli.cli; print(*{'torch', 'cv2', 'h5py', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_what_needs_no_network_does_without_torch() -> None:
    program = "import sys\n"
    for module in ("file_info", "merging", "refining", "export.colmap", "export.conversion"):
        program += f"import sekd_cli.{module}\nif 'torch' in sys.modules: sys.exit('{module} loads torch')\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_no_module_hides_the_packaged_weights() -> None:
    assert not (PACKAGE / "weights.py").exists()
    assert not (PACKAGE / "weights").exists()
