"""README.md and docs/: their code runs, their links lead somewhere, and they leave no public name out."""

import ast
import builtins
import contextlib
import inspect
import io
import keyword
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

import vipl
import vipl.interop.flax
import vipl.testing
from tests.helpers.pin import pinned_messages

ROOT = Path(__file__).parent.parent
PAGES = {str(path.relative_to(ROOT)): path for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
DOCTESTS = [
    "vipl.interpret.seed",
    "vipl.gen._detach",
    "vipl.gen._partly",
    "vipl.gen._program",
    "vipl.gen._scaled",
    "vipl.gen._table",
    "vipl.gen._without_choice",
    "vipl.expectation.expectation",
    "vipl.fit._fit",
    "vipl.guides._amortized",
    "vipl.guides._combine",
    "vipl.guides._markov",
    "vipl.posterior._draws",
    "vipl.posterior._infer",
    "vipl.interop.flax",
]


def without_line(text):
    """A message without the file and line of its site."""
    return re.sub(r"\(\S+:\d+\)", "(*)", text).strip()


@pytest.mark.parametrize("page", [p for p, path in PAGES.items() if "```python" in path.read_text()])
def test_code_blocks_run(page):
    """In order, in one namespace; what a block prints is the ```text block after it."""
    text = PAGES[page].read_text()
    blocks = [
        (kind, code, text[: m.start()].count("\n") + 1) for m in BLOCK.finditer(text) for kind, code in [m.groups()]
    ]
    namespace = {"__name__": "docs"}
    for i, (kind, code, line) in enumerate(blocks):
        if kind != "python":
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * line + code, str(PAGES[page]), "exec"), namespace)
        if printed.getvalue():
            following, expected, _ = blocks[i + 1]
            assert following == "text"
            assert without_line(printed.getvalue()) == without_line(expected)


def public(module):
    """What a user may import from a module."""
    names = getattr(module, "__all__", None) or {name for name in vars(module) if not name.startswith("_")}
    return {name for name in names if not inspect.ismodule(vars(module)[name])}


MODULES = [module for name, module in vars(vipl).items() if name in vipl.__all__ and inspect.ismodule(module)]


def test_every_public_name_is_in_the_reference():
    """A name that stands at the top as well is there by its shorter name."""
    text = PAGES["docs/reference.md"].read_text()
    wanted = {f"vipl.{name}" for name in public(vipl)} | {"vipl.interop.flax.functional"}
    for module in MODULES:
        wanted |= {f"{module.__name__}.{name}" for name in public(module) - public(vipl)}
    assert {"vipl.errors.AddressError", "vipl.inference.SMC", "vipl.estimators.Points"} <= wanted
    shown = set(re.findall(r"`([\w.]+)(?:\([^`]*\))?`", text))
    assert sorted(wanted - shown) == []


def test_nothing_in_the_reference_is_made_up():
    """Every `vipl...` name at the beginning of a line of a table exists."""
    for name in re.findall(r"^\| `vipl\.([\w.]+)", PAGES["docs/reference.md"].read_text(), re.MULTILINE):
        found = vipl
        for part in name.split("."):
            found = getattr(found, part)


def test_the_messages_on_the_page_of_errors_are_real():
    """Each is pinned, word for word, and each class has one."""
    pinned = set(pinned_messages().values())
    shown = re.findall(r"^```text\n(\w+Error: .*?)^```$", PAGES["docs/errors.md"].read_text(), re.DOTALL | re.MULTILINE)
    assert len(shown) >= 25
    assert [message for message in shown if message not in pinned] == []
    found = vars(vipl.errors).values()
    classes = {x.__name__ for x in found if inspect.isclass(x) and issubclass(x, vipl.errors.ViplError)}
    assert {message.split(":")[0] for message in shown} == classes - {"ViplError"}


def test_the_citation_is_of_this_version():
    cited = re.findall(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    here = re.findall(r'^version = "(\S+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert cited == here != []


def test_every_error_class_is_in_the_list_of_errors():
    text = PAGES["docs/errors.md"].read_text()
    assert len(vipl.errors.__all__) > 5
    assert [name for name in vipl.errors.__all__ if f"`{name}`" not in text] == []


def test_the_readme_is_short():
    """At most 500 words; limits and tables stand in docs/."""
    assert len(PAGES["README.md"].read_text().split()) <= 500


def test_the_index_leads_to_all_pages():
    links = set(LINK.findall(PAGES["docs/index.md"].read_text()))
    assert {Path(page).name for page in PAGES if page.startswith("docs/")} - {"index.md"} <= links


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    links = LINK.findall(re.sub(BLOCK, "", PAGES[page].read_text()))
    relative = [link.split("#")[0] for link in links if not re.match(r"[a-z]+:|#", link)]
    assert [link for link in relative if not (PAGES[page].parent / link).exists()] == []


def test_pictures_are_told_in_words():
    """Where a picture cannot be loaded its text stands there: what each part of it shows."""
    pictures = [text for path in PAGES.values() for text in re.findall(r"!\[([^\]]*)\]", path.read_text())]
    assert len(pictures) >= 3
    assert [text for text in pictures if len(text.split()) < 30] == []


FILES = [path for folder in ("vipl", "tests", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
TREES = {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in FILES}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)
DOCSTRINGS = {
    name: "\n".join(ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, DOCUMENTED))
    for name, tree in TREES.items()
}
TEXTS = DOCSTRINGS | {page: path.read_text() for page, path in PAGES.items()}
TEXTS |= {page: (ROOT / page).read_text() for page in ("CONTRIBUTING.md", "CHANGELOG.md")}


def test_files_that_are_named_exist():
    """In docstrings and pages; a star stands for anything."""
    pattern = re.compile(r"(?<![\w/.])(?:tests|vipl|docs|benchmarks)/[\w/*-]*\.\w+")
    named = {(name, where) for where, text in TEXTS.items() for name in pattern.findall(text)}
    assert len(named) > 20
    assert [pair for pair in sorted(named) if not list(ROOT.glob(pair[0]))] == []


def exists(name):
    """Whether a dotted name leads to a module, or to something in one."""
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


def test_modules_and_what_is_named_in_them_exist():
    """In docstrings and pages: `vipl.gen`, `vipl.ir.keys`, `vipl.testing.assert_unbiased`."""
    pattern = re.compile(r"(?<![\w./])(?:vipl|tests|benchmarks)(?:\.\w+)+")
    named = {(name, where) for where, text in TEXTS.items() for name in pattern.findall(text)}
    named = {(name, where) for name, where in named if not name.endswith((".md", ".py"))}
    assert len(named) > 100
    assert [pair for pair in sorted(named) if not exists(pair[0])] == []


def names_in(tree):
    """The names of a file's code, and the words of its strings; docstrings left out."""
    documented = [node for node in ast.walk(tree) if isinstance(node, DOCUMENTED) and ast.get_docstring(node)]
    first: list[Any] = [node.body[0] for node in documented]
    docstrings = {id(statement.value) for statement in first}
    for node in ast.walk(tree):
        fields = ("id", "attr", "arg", "name", "module", "value") if id(node) not in docstrings else ()
        for text in (getattr(node, field, None) for field in fields):
            yield from re.findall(r"\w+", text) if isinstance(text, str) else ()


def test_names_in_backquotes_are_names_of_the_code():
    """In the docstrings of the package; or they are Python's, or JAX's."""
    known = {name for file, tree in TREES.items() if file.startswith("vipl") for name in names_in(tree)}
    known |= {part for file in TREES for part in Path(file).with_suffix("").parts}
    # "png": pictures by their names; "remat": a primitive of JAX
    known |= {*keyword.kwlist, *dir(builtins), *dir(jax), *dir(jax.tree_util), *dir(jax.errors), "png", "remat"}
    named = {
        (name, where)
        for where, text in DOCSTRINGS.items()
        if where.startswith("vipl")
        for name in re.findall(r"`([A-Za-z_][\w.]*)(?:\(|`)", text)
    }
    assert len(named) > 300
    assert [pair for pair in sorted(named) if not known.issuperset(pair[0].strip(".").split("."))] == []


@pytest.mark.newest
def test_doctests_of_public_docstrings():
    """In a process of their own, since they show single precision."""
    code = (
        "import doctest, importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    result = doctest.testmod(importlib.import_module(name))\n"
        "    print(name, result.attempted, result.failed)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *DOCTESTS], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    counts = re.findall(r"^(vipl\S+) (\d+) (\d+)$", done.stdout, re.MULTILINE)
    assert [name for name, *_ in counts] == DOCTESTS
    assert all(int(attempted) > 0 and failed == "0" for _, attempted, failed in counts), done.stdout
