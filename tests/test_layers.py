"""
The floors of the package: imports run downward only.

The faces (``model``, ``latents``, ``whole_series``, ``sktime``) stand on the bridge
(``module``, ``queries``, ``window``, ``density``, ``scaling``), and the bridge stands on
``ssm``, which is pure PyTorch.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "darts_ddssm"
FILES = sorted(PACKAGE.rglob("*.py"))
SSM = sorted((PACKAGE / "ssm").rglob("*.py"))
NAMES = ("density", "scaling", "module", "queries", "window")
BRIDGE = [PACKAGE / f"{name}.py" for name in NAMES]

FRAMEWORKS = ("darts", "lightning", "pytorch_lightning")
FACES = tuple(
    f"darts_ddssm.{name}"
    for name in ("model", "latents", "whole_series", "sktime", "DDSSMModel")
)


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


def test_the_floors_have_files():
    assert SSM
    assert all(file.is_file() for file in BRIDGE)


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


@each(SSM)
def test_ssm_is_pure_pytorch(file):
    names = imported(file)
    assert not [name for name in names if lies_in(name, *FRAMEWORKS)]
    own = [name for name in names if lies_in(name, "darts_ddssm")]
    assert all(lies_in(name, "darts_ddssm.ssm") for name in own), own


@each(BRIDGE)
def test_the_bridge_does_not_import_the_faces(file):
    names = imported(file)
    assert "darts_ddssm" not in names
    assert not [name for name in names if lies_in(name, *FACES)]


@each([file for file in FILES if file != PACKAGE / "sktime.py"])
def test_the_extra_is_not_imported(file):
    assert not [name for name in imported(file) if lies_in(name, "sktime", "skpro")]


@each(SSM + BRIDGE)
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
