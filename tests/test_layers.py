"""
The layers of the package: imports run downward only, without circles.

The layers are the folders ``ssm``, ``series``, ``training`` and ``estimator``, from the
bottom up. What users import stands on top of them: the files and the other folders.
"""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "darts_ddssm"
FILES = sorted(PACKAGE.rglob("*.py"))
LAYERS = ("ssm", "series", "training", "estimator")
# checks of arguments, which stand on nothing
GROUND = "darts_ddssm.validation"

# What a layer may import beside torch and itself. The module of the trainer is darts'.
FOREIGN = {"ssm": (), "series": ("darts",)}
FRAMEWORKS = ("darts", "lightning", "pytorch_lightning", "sktime", "skpro", "pandas")


def each(files: list[Path]) -> pytest.MarkDecorator:
    """Run a test once for each file, named by its path in the package."""
    names = [str(file.relative_to(PACKAGE)) for file in files]
    return pytest.mark.parametrize("file", files, ids=names)


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))


def imports(tree: ast.Module, package: str) -> Iterator[str]:
    """Yield the absolute dotted name of all that a file in ``package`` imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = [node.module] if node.module else []
            if node.level:
                above = package.split(".")
                parts = above[: len(above) - node.level + 1] + parts
            yield from (".".join([*parts, alias.name]) for alias in node.names)


def imported(file: Path) -> list[str]:
    package = ".".join(file.parent.relative_to(PACKAGE.parent).parts)
    return list(imports(parse(file), package))


def lies_in(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def module_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def layer_of(file: Path) -> int:
    """Number of the layer of a file; the top has the highest."""
    room = file.relative_to(PACKAGE).parts[0]
    return LAYERS.index(room) if room in LAYERS else len(LAYERS)


MODULES = {module_of(file): file for file in FILES}


def own_imports(file: Path) -> set[str]:
    """Modules of the package that a file imports."""
    found = set()
    for name in imported(file):
        # a name in a module, or a module in a folder
        candidates = [name, name.rpartition(".")[0]]
        found |= {next((c for c in candidates if c in MODULES), "")}
    return found - {"", module_of(file)}


def test_each_folder_below_the_top_is_a_layer_or_known():
    folders = {
        file.relative_to(PACKAGE).parts[0] for file in FILES if file.parent != PACKAGE
    }
    assert folders == {*LAYERS, "datasets", "sktime"}


def test_imports_are_found():
    """The graph is not empty: what is known of it is in it."""
    assert "darts_ddssm.ssm.encoder" in own_imports(PACKAGE / "ssm" / "state_space.py")
    assert "darts_ddssm.series.model" in own_imports(PACKAGE / "series" / "inference.py")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch.nn as nn", ["torch.nn"]),
        ("from darts import a, b", ["darts.a", "darts.b"]),
        ("from . import encoder", ["darts_ddssm.ssm.encoder"]),
        ("from .encoder import Encoder", ["darts_ddssm.ssm.encoder.Encoder"]),
        ("from .. import model", ["darts_ddssm.model"]),
        ("from ..window import x", ["darts_ddssm.window.x"]),
        ("def f():\n    import darts", ["darts"]),
    ],
)
def test_imports_are_resolved(source, expected):
    assert list(imports(ast.parse(source), "darts_ddssm.ssm")) == expected


@each(FILES)
def test_imports_run_downward(file):
    above = {
        name
        for name in own_imports(file) - {GROUND}
        if layer_of(MODULES[name]) > layer_of(file)
    }
    assert not above


def test_there_is_no_circle():
    graph = {module_of(file): own_imports(file) for file in FILES}
    # raises CycleError
    assert len(list(TopologicalSorter(graph).static_order())) == len(FILES)


def test_the_ground_stands_on_nothing():
    assert not own_imports(MODULES[GROUND])


@each([file for file in FILES if layer_of(file) < 2])
def test_low_layers_know_no_framework(file):
    allowed = FOREIGN[LAYERS[layer_of(file)]]
    foreign = [name for name in imported(file) if lies_in(name, *FRAMEWORKS)]
    assert not [name for name in foreign if not lies_in(name, *allowed)]


@each([file for file in FILES if PACKAGE / "sktime" not in file.parents])
def test_the_extra_is_not_imported(file):
    assert not [name for name in imported(file) if lies_in(name, "sktime", "skpro")]


@each([file for file in FILES if layer_of(file) < 3])
def test_random_numbers_come_from_torch_alone(file):
    # darts isolates the state of torch's global generator, and of no other
    names = imported(file)
    assert not [name for name in names if lies_in(name, "numpy.random", "random")]
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.Attribute) and node.attr == "random":
            assert ast.unparse(node.value) not in ("np", "numpy"), node.lineno


@each(FILES)
def test_nothing_is_printed(file):
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", node.lineno


@each(FILES)
def test_every_file_has_a_docstring(file):
    assert ast.get_docstring(parse(file))
