"""The documentation site: what it is made of is complete, and its checks can fail. `make docs` builds it strictly."""

import inspect
import re
from pathlib import Path

import pytest

import vipl
from docs.site import check, docstrings, names, pages
from vipl import zoo

ROOT = Path(__file__).parent.parent
TEXTS = pages.texts()
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def public(module):
    return [name for name in getattr(module, "__all__", None) or vars(module) if not name.startswith("_")]


def test_every_public_name_is_on_a_page():
    """`make docs` checks the same of what it has built."""
    exported = [getattr(vipl, name) for name in vipl.__all__]
    wanted = {"vipl.interop.flax.functional", "vipl.interop.flax.Stateful"}
    for module in [vipl, *(x for x in exported if inspect.ismodule(x) and x is not vipl.interop)]:
        things = {f"{module.__name__}.{name}": getattr(module, name) for name in public(module)}
        things = {name: x for name, x in things.items() if not inspect.ismodule(x)}
        wanted |= {name for name, x in things.items() if module is vipl or x not in exported}
    assert {"vipl.infer", "vipl.guides.FullRank", "vipl.errors.AddressError", "vipl.inference.SMC"} <= wanted
    api = "\n".join(text for name, text in TEXTS.items() if name.startswith("api/"))
    shown = re.findall(r"^\.\. auto(?:class|function|data):: (\S+)$", api, re.MULTILINE)
    assert sorted(shown) == sorted(wanted)


def test_every_public_name_says_what_it_is():
    assert [name for name, thing in names.documented().items() if not pages.first_sentence(thing)] == []


def test_notebooks_methods_and_pages_are_found():
    """Also those that come later: nothing is listed by hand but the parts of the sidebar."""
    wanted = {str(path.relative_to(ROOT)) for path in ROOT.glob("notebooks/*.ipynb")} | {"docs/images/cone.png"}
    assert len(wanted) > 7
    assert wanted <= pages.copies().keys()
    assert {f"zoo/{name}.md" for name in zoo.names()} <= TEXTS.keys()
    assert {f"docs/{path.name}" for path in ROOT.glob("docs/*.md")} <= TEXTS.keys()
    listed = {re.sub(r".*<|>", "", entry) for part in pages.PARTS.values() for entry in part}
    assert {entry for entry in listed if f"{entry}.md" not in TEXTS and f"{entry}.rst" not in TEXTS} == set()
    assert {name.removesuffix(".md") for name in TEXTS if name.startswith("docs/")} <= listed


def test_a_method_has_its_paper_picture_numbers_and_program():
    text = TEXTS["zoo/importance_weighted.md"]
    assert "Burda, Grosse and Salakhutdinov (2016)" in text
    assert "docs/images/zoo/importance_weighted.png" in text
    assert re.search(r"^\| L_5 \| -1\.839\d+ \| -1\.839758 \|", text, re.MULTILINE)
    assert "def run(progress: bool = True) -> Outcome:" in text


def test_every_method_has_a_picture_and_its_numbers():
    """The command in CONTRIBUTING.md under "The documentation site" writes them."""
    assert [name for name in zoo.names() if not pages.has_picture(name)] == []
    assert zoo.names() == sorted(pages.stored_numbers())


def test_rows_of_numbers_are_read_by_their_columns():
    printed = "\n".join(
        [
            "  method   number           reached    reference tolerance seconds",
            "  flows    ELBO, N = 4    -0.074990    -0.075470     0.002    11.4",
            "  flows    mean 0          0.076900     0.076939     5e-05 ",
            "  flows    a bound              nan    -1.000000       0.1  MISSED",
            "\n3 methods; pictures in zoo-out/. 1 NUMBERS MISSED.",
        ]
    )
    rows = [["ELBO, N = 4", "-0.074990", "-0.075470", "0.002"], ["mean 0", "0.076900", "0.076939", "5e-05"]]
    assert pages.numbers_in(printed) == {"flows": [*rows, ["a bound", "nan", "-1.000000", "0.1"]]}


def test_links_lead_to_pages_of_the_site():
    """As they stand in the source tree; in its pages by `make docs`."""
    wanted = TEXTS.keys() | pages.copies().keys()
    broken = []
    for name, text in TEXTS.items():
        for link in LINK.findall(re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)):
            target = (ROOT / name).parent / link.split("#")[0]
            if not re.match(r"[a-z]+:|#", link) and str(target.resolve().relative_to(ROOT)) not in wanted:
                broken.append((name, link))
    assert broken == []


@pytest.mark.parametrize(
    ("code", "target"),
    [
        ("vipl.fit", "vipl.fit"),
        ("fit(objective, params)", "vipl.fit"),
        ("FullRank", "vipl.guides.FullRank"),
        ("Posterior.sample", "vipl.Posterior.sample"),
        ("Posterior.samples", None),
        ("@vipl.gen", "vipl.gen"),
        ("lax.scan", "https://docs.jax.dev/en/latest/_autosummary/jax.lax.scan.html#jax.lax.scan"),
        ("phi", None),
        ("fit(objective, params).params", None),
        ("x > 0", None),
    ],
)
def test_names_in_backquotes_are_links(code, target):
    assert names.Links().find(code) == target


def test_in_a_class_a_method_is_its_own():
    assert names.Links().find("sample", owner="vipl.Posterior") == "vipl.Posterior.sample"


@pytest.mark.parametrize("project", names.SITES)
def test_names_of_other_sites_exist(project):
    """In the packages that are installed; a module that starts with an underscore is one of a version."""
    import pkgutil

    listed = names.inventory(project)
    assert len(listed) > 10
    assert [name for name in listed if "._" not in name and pkgutil.resolve_name(name) is None] == []


DOCSTRING = """Bound of order K; see `elbo`.

L_K = E[log (1/K) Σ_k w_k],  z_k ~ q,   |w| > 0.

With K_ particles and *args:

    a   |  b
    c*d

- one `x`,
  two lines

Args:
  model: p(x, z_*), of `gen`.
  n: K.
Reference: someone."""


def test_docstrings_become_restructured_text():
    out = "\n".join(docstrings.to_rst(DOCSTRING.splitlines()))
    assert "see \\ ``elbo``\\ ." in out
    assert "   L_K = E[log (1/K) Σ_k w_k],  z_k ~ q,   |w| > 0.\n" in out
    assert "With K\\_ particles and \\*args:" in out
    assert "   a   |  b\n   c*d\n" in out
    assert "- one \\ ``x``\\ ,\n  two lines" in out
    assert "  model: p(x, z\\_\\*), of \\ ``gen``\\ ." in out
    assert "  n: \\K." in out
    assert out.count(":class: formula") == 2


@pytest.mark.parametrize(
    ("long", "short"),
    [
        (
            "(key: ~jaxtyping.Key[jaxlib._jax.Array, ''] | ~jaxtyping.UInt32[jaxlib._jax.Array, '2'] | "
            "~jaxtyping.UInt32[jaxlib._jax.Array, '4'] | None = None)",
            "(key: ~jaxtyping.PRNGKeyArray | None = None)",
        ),
        (
            "(x: ~jaxtyping.Float[Array, ''] | ~jaxtyping.Float[ndarray, ''] | ~numpy.number | float = 0.1, n: int)",
            "(x: ~jaxtyping.Float[~jaxtyping.ArrayLike, ''] = 0.1, n: int)",
        ),
        ("(x: Float[Array, 'n'] | None, y: Step = <factory>)", "(x: Float[Array, 'n'] | None, y: Step = ...)"),
        (None, None),
    ],
)
def test_signatures_are_as_they_are_written(long, short):
    assert docstrings.short_types(long) == short


def test_problems_of_a_site_are_found(tmp_path):
    (tmp_path / "a.html").write_text('<h1 id="top"></h1><a href="b.html#there"></a><a href="https://x.org/"></a>')
    (tmp_path / "b.html").write_text('<p id="there"></p><a href="a.html#top"></a><img src="data:image/png;base64,AA">')
    assert check.problems(tmp_path) == []
    (tmp_path / "b.html").write_text(
        '<a href="c.html"></a><a href="a.html#bottom"></a><script src="https://x.org/x.js"></script>'
        '<link rel="stylesheet" href="missing.css">'
    )
    assert check.problems(tmp_path) == [
        "a.html: b.html#there leads to no anchor",
        "b.html: c.html leads to no file",
        "b.html: a.html#bottom leads to no anchor",
        "b.html: loads https://x.org/x.js",
        "b.html: missing.css leads to no file",
    ]
