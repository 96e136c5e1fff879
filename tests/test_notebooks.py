"""Notebooks: each pair says the same, keeps outputs and pictures, and runs in a short form to the number it asserts."""

import ast
import pathlib
import re

import jax
import jupytext
import pytest

FOLDER = pathlib.Path(__file__).parent.parent / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
MEGABYTE = 2**20


def cells(name, suffix):
    return jupytext.read(FOLDER / f"{name}{suffix}").cells


def code(name, suffix=".py"):
    return [cell for cell in cells(name, suffix) if cell.cell_type == "code"]


@pytest.fixture
def single_precision():
    """Notebooks run as users run them, in float32; compiled quickly, as compilation is most of a short form."""
    jax.config.update("jax_enable_x64", False)
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.config.update("jax_enable_x64", True)
    jax.clear_caches()


@pytest.fixture
def pyplot(monkeypatch, tmp_path):
    """Figures are drawn and not shown; files of a notebook land in a folder of the test."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    monkeypatch.chdir(tmp_path)
    yield pyplot
    pyplot.close("all")


def test_there_are_notebooks():
    assert NAMES
    listed = re.findall(r"\]\((\w+)\.ipynb\)", (FOLDER / "README.md").read_text())
    assert listed == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_pair_says_the_same(name):
    source, made = cells(name, ".py"), cells(name, ".ipynb")
    assert [(cell.cell_type, cell.source, cell.metadata.get("short")) for cell in source] == [
        (cell.cell_type, cell.source, cell.metadata.get("short")) for cell in made
    ]


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_pictures_are_kept(name):
    made = code(name, ".ipynb")
    assert [cell.execution_count for cell in made] == list(range(1, len(made) + 1))
    outputs = [output for cell in made for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    text = (FOLDER / f"{name}.ipynb").read_text()
    assert len(text) < MEGABYTE
    assert not re.search(r"/(home|root|tmp|work)/|[A-Z]:\\\\Users", text)


@pytest.mark.parametrize("name", NAMES)
def test_ends_at_an_assertion(name):
    assert any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(code(name)[-1].source)))


@pytest.mark.oldest
@pytest.mark.parametrize("name", NAMES)
def test_runs_in_short_form(name, single_precision, pyplot):
    names = {"__name__": name}
    for number, cell in enumerate(code(name), 1):
        exec(compile(cell.source, f"{name}, cell {number}", "exec"), names)
        exec(cell.metadata.get("short", ""), names)
