"""The pages of the site: those of the repository, and those that are made from the code.

The source tree has the layout of the repository, so that a link between two pages is right on both. The README is its
front page. No list of names, notebooks or methods is kept by hand.
"""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

from docs.site.docstrings import escape, to_rst
from docs.site.names import documented, public_modules
from vipl import zoo
from vipl.zoo._run import title

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
BUILD = ROOT / "docs" / "_build"

# What stands in the sidebar, by part. "glob" lists are in the order of file names.
PARTS = {
    "Start": ["docs/start", "notebooks/README", "zoo/index"],
    "Concepts": ["docs/programs", "docs/control-flow", "docs/densities", "docs/randomness", "docs/life-of-an-estimate"],
    "How to": ["docs/how-to", "docs/posteriors", "docs/estimators"],
    "Reference": ["api/index", "docs/reference", "docs/errors", "docs/limits", "docs/notation", "docs/theory"],
    "Measured": ["docs/demo", "docs/benchmarks", "Results <benchmarks/RESULTS>"],
    "Project": ["CHANGELOG", "CONTRIBUTING", "docs/index"],
}


# Parts of the page of `vipl`, by the package in which a name is defined; else its docstring is the heading.
HEADINGS = {
    "vipl.gen": "Programs",
    "vipl.interpret": "Programs as functions of a key",
    "vipl.expectation": "Objectives",
    "vipl.fit": "Fits",
    "vipl.posterior": "Posteriors",
    "vipl.estimators": "Estimators",
    "vipl.inference": "Estimated densities",
}


def assemble(source: Path = BUILD / "source") -> None:
    """Writes the source tree; leaves what stays the same untouched, and removes what is no page any more."""
    wanted: dict[str, str | bytes] = {**texts()} | {name: path.read_bytes() for name, path in copies().items()}
    for old in [path for path in source.rglob("*") if path.is_file()]:
        if str(old.relative_to(source)) not in wanted:
            old.unlink()
    for name, content in wanted.items():
        path = source / name
        content = content.encode() if isinstance(content, str) else content
        if not path.exists() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def copies() -> dict[str, Path]:
    """What the source tree has as it is."""
    patterns = ["docs/images/**/*.png", "notebooks/*.ipynb", "benchmarks/results/*.png"]
    paths = [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    paths.append(ROOT / "LICENSE")
    return {str(path.relative_to(ROOT)): path for path in paths}


def texts() -> dict[str, str]:
    """What is made, or changed a little."""
    pages = [
        *sorted(ROOT.glob("docs/*.md")),
        ROOT / "CHANGELOG.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "benchmarks/RESULTS.md",
    ]
    made = {str(path.relative_to(ROOT)): path.read_text().replace("](../README.md", "](../index.md") for path in pages}
    made["docs/index.md"] = made["docs/index.md"].replace("# vipl\n", "# All pages\n", 1)
    made |= {"index.md": (ROOT / "README.md").read_text() + toctrees(), "notebooks/README.md": tutorials()}
    made |= {"api/index.rst": api_index(), "zoo/index.md": gallery()}
    made |= {f"api/{name}.rst": api(name) for name in public_modules()}
    return made | {f"zoo/{name}.md": method(name) for name in zoo.names()}


def toctrees() -> str:
    """The sidebar."""
    parts = [":::{toctree}\n:hidden:\n:caption: " + part + "\n\n" + "\n".join(pages) for part, pages in PARTS.items()]
    return "\n" + "".join(f"{part}\n:::\n\n" for part in parts)


def tutorials() -> str:
    """The list of notebooks, which is also the order in which they are read."""
    text = (ROOT / "notebooks/README.md").read_text().replace("# Notebooks\n", "# Tutorials\n", 1)
    return text + "\n:::{toctree}\n:hidden:\n:glob:\n\n[0-9]*\n:::\n"


def first_sentence(thing: Any) -> str:
    """What the first paragraph of a docstring says, in one line."""
    return (inspect.getdoc(thing) or "").split("\n\n")[0].replace("\n", " ")


def api_index() -> str:
    """The list of modules."""
    rows = [
        f"   * - :doc:`{name}`\n     - {escape(first_sentence(module))}" for name, module in public_modules().items()
    ]
    listed = "\n".join(f"   {name}" for name in public_modules())
    return f"""API
===

Every public name, from its docstring. The same as tables, by subject: :doc:`../docs/reference`.

.. list-table::
   :widths: 30 70

{chr(10).join(rows)}

.. toctree::
   :hidden:

{listed}
"""


def api(module_name: str) -> str:
    """The page of a module: a table of its names, then each with its docstring, in parts where it has many."""
    names = [name for name in documented() if name.rpartition(".")[0] == module_name]
    parts: dict[str, list[str]] = {part: [] for part in HEADINGS.values()}
    for name in names:
        parts.setdefault(_part(documented()[name]) if module_name == "vipl" else "", []).append(name)
    text = [module_name, "=" * len(module_name), "", f".. automodule:: {module_name}", ""]
    for part, members in ((part, members) for part, members in parts.items() if members):
        text += [part, "-" * len(part), ""] if part else []
        text += [".. list-table::", "   :widths: 30 70", "   :class: names", ""]
        for name in members:
            role = "class" if inspect.isclass(documented()[name]) else "func"
            text += [f"   * - :py:{role}:`~{name}`", f"     - {escape(first_sentence(documented()[name]))}"]
        text += ["", *(line for name in members for line in _entry(name, documented()[name]))]
    return "\n".join(text) + "\n"


def _part(thing: Any) -> str:
    """The heading of a thing that stands at the top: what the package in which it is defined is about."""
    package = importlib.import_module(".".join(thing.__module__.split(".")[:2]))
    return HEADINGS.get(package.__name__) or first_sentence(package).rstrip(".")


def _entry(name: str, thing: Any) -> list[str]:
    if not inspect.isclass(thing):
        return [f".. autofunction:: {name}" if callable(thing) else f".. autodata:: {name}", ""]
    lines = [f".. autoclass:: {name}", "   :members:", "   :show-inheritance:"]
    if "__call__" in vars(thing) and thing.__call__.__doc__:
        lines.append("   :special-members: __call__")
    return [*lines, ""]


def gallery() -> str:
    """The zoo, with pictures."""
    cards = []
    for name in zoo.names():
        method = zoo.load(name)
        picture = f":img-top: ../docs/images/zoo/{name}.png\n" if has_picture(name) else ""
        about = f"{method.OBJECTIVE[0].upper()}{method.OBJECTIVE[1:]}.\n\n```{{card-footer}}\n{method.PAPER}\n```"
        cards.append(f":::{{grid-item-card}} {title(method)}\n:link: {name}\n:link-type: doc\n{picture}\n{about}\n:::")
    listed = "\n".join(f"{name.replace('_', ' ').capitalize()} <{name}>" for name in zoo.names())
    return f"""# Gallery: the zoo

Published methods as short programs of the public API. Each is one file, and reaches a number that is known.
`python -m vipl zoo` lists them. `python -m vipl zoo NAME` runs one, prints what it reached beside what is known, and
saves its picture.

::::{{grid}} 1 2 2 3
:gutter: 3

{chr(10).join(cards)}
::::

:::{{toctree}}
:hidden:

{listed}
:::
"""


def has_picture(name: str) -> bool:
    """Whether the picture of a method is kept."""
    return (ROOT / f"docs/images/zoo/{name}.png").exists()


def stored_numbers() -> dict[str, list[list[str]]]:
    """Of each method, the rows that `python -m vipl zoo --all` printed when its output was last kept."""
    path = ROOT / "docs/images/zoo/numbers.txt"
    return numbers_in(path.read_text() if path.exists() else "")


def numbers_in(printed: str) -> dict[str, list[list[str]]]:
    """The rows of each method: the name of a number, which may end in digits itself, and three values."""
    rows: dict[str, list[list[str]]] = {}
    for line in printed.splitlines():
        if match := re.match(r"  (\w+) +(.+?) +(-?\d+\.\d{6}|nan) +(-?\d+\.\d{6}) +([\d.e+-]+)\b", line):
            name, *values = match.groups()
            rows.setdefault(name, []).append(values)
    return rows


def method(name: str) -> str:
    """The page of a method: paper, objective, derivation, picture, numbers, program."""
    module = zoo.load(name)
    rest = (module.__doc__ or "").strip().partition("\n")[2]
    rows = ["| number | reached | reference | tolerance |", "| --- | ---: | ---: | ---: |"]
    rows += [f"| {' | '.join(map(_plain, values))} |" for values in stored_numbers().get(name, [])]
    parts = [
        f"# {title(module)}",
        f"- Paper: {module.PAPER}\n- Objective: {module.OBJECTIVE}\n- Run it: `python -m vipl zoo {name}`",
        f"![What the method reached.](../docs/images/zoo/{name}.png)" if has_picture(name) else "",
        "## What is known\n\n```{eval-rst}\n" + "\n".join(to_rst(inspect.cleandoc(rest).splitlines())) + "\n```",
        "## What was reached\n\n" + "\n".join(rows) if len(rows) > 2 else "",
        f"## The program\n\n`vipl/zoo/{name}.py`:\n\n```python\n{_source(module)}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _plain(text: str) -> str:
    """A cell of a table in Markdown, without markup."""
    return re.sub(r"([|*$`])", r"\\\1", text)


def _source(module: Any) -> str:
    """A method's file without its docstring, which stands above."""
    text = Path(module.__file__).read_text()
    return re.sub(r'\A""".*?"""\n+', "", text, flags=re.DOTALL).strip()
