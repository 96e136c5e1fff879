"""The zoo: each method reaches its numbers, says where they come from, and is short."""

import ast
import importlib
import pathlib
import re

import jax
import pytest

from vipl import zoo
from vipl.__main__ import main

NAMES = zoo.names()
FOLDER = pathlib.Path(zoo.__file__).parent


@pytest.fixture
def single_precision():
    """Methods run as users run them, in float32."""
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", True)
    jax.clear_caches()


@pytest.mark.parametrize("name", NAMES)
def test_a_method_reaches_its_numbers(name, single_precision):
    from matplotlib.figure import Figure

    method = importlib.reload(importlib.import_module(f"vipl.zoo.{name}"))  # its constants, too, in this precision
    outcome = method.run(progress=False)
    assert outcome.numbers
    assert [n for n in outcome.numbers if not n.holds] == []
    figure = Figure(figsize=(8, 4))
    outcome.draw(figure)
    assert figure.axes


@pytest.mark.parametrize("name", NAMES)
def test_a_method_uses_the_public_api_alone(name):
    tree = ast.parse((FOLDER / f"{name}.py").read_text())
    read = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            imported += [f"{node.module}.{alias.name}" for alias in node.names]
    assert [x for x in [*read, *imported] if re.match(r"vipl(\.\w+)*\._", x)] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_method_says_what_it_is(name):
    method = zoo.load(name)
    assert method.PAPER
    assert method.OBJECTIVE
    assert len((method.__doc__ or "").strip().split("\n")) > 3
    assert len((FOLDER / f"{name}.py").read_text().split("\n")) <= 150


def test_the_numbers_of_a_method_can_be_missed():
    assert zoo.Number("x", 1.0, 1.1, 0.2).holds
    assert not zoo.Number("x", 1.0, 1.3, 0.2).holds
    assert not zoo.Number("x", float("nan"), 1.0, 10.0).holds


def test_the_command_lists_and_runs(capsys, tmp_path, single_precision):
    assert main(["zoo"]) == 0
    assert re.findall(r"^(\w+)$", capsys.readouterr().out, re.MULTILINE) == NAMES
    assert main(["zoo", "no_such_method"]) == 2
    assert "the zoo has no no_such_method" in capsys.readouterr().err
    assert main(["zoo", "importance_weighted", "--out", str(tmp_path)]) == 0
    assert "All hold." in capsys.readouterr().out
    assert (tmp_path / "importance_weighted.png").stat().st_size > 1000
