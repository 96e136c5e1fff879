"""Sphinx's settings for the site."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import desc, desc_signature, pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

import vipl
from docs.site import docstrings, mathml
from docs.site.names import SITES, Links, documented, inventory, where_defined
from docs.site.pages import BUILD

project = "vipl"
author = "the authors of vipl"
release = vipl.__version__
version = release
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx.ext.viewcode",
    "sphinx_design",
]
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".ipynb": "myst-nb"}
highlight_language = "text"
suppress_warnings: list[str] = []

# Markdown and notebooks: outputs are those that are stored.
nb_execution_mode = "off"
nb_merge_streams = True
nb_ipywidgets_js: dict[str, dict[str, str]] = {}
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath", "colon_fence", "attrs_block"]

# Docstrings.
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_attr_annotations = False
add_module_names = False
python_maximum_signature_line_length = 90
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"
viewcode_line_numbers = True

# Other sites.
intersphinx_disabled_reftypes = ["std:doc"]
intersphinx_mapping: dict[str, tuple[str, str]] = {}


def write_inventories() -> None:
    """Writes the lists of `inventories/` in the form that intersphinx reads."""
    folder = BUILD / "inventories"
    folder.mkdir(parents=True, exist_ok=True)
    for name, site in SITES.items():
        head = f"# Sphinx inventory version 2\n# Project: {name}\n# Version: 0\n"
        head += "# The remainder of this file is compressed using zlib.\n"
        rows = [f"{full} py:{role} 1 {page} -\n" for full, (role, page) in inventory(name).items()]
        (folder / f"{name}.inv").write_bytes(head.encode() + zlib.compress("".join(rows).encode()))
        intersphinx_mapping[name] = (site, str(folder / f"{name}.inv"))


write_inventories()

# Looks.
html_theme = "furo"
html_title = f"vipl {release}"
html_static_path = [str(Path(__file__).parent / "static")]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_theme_options = {"navigation_with_keys": False}
pygments_style = "friendly"
pygments_dark_style = "native"


class LinkCode(SphinxPostTransform):
    """Makes links of names in backquotes, in pages and docstrings alike."""

    default_priority = 400
    formats = ("html",)

    def run(self, **kwargs: Any) -> None:
        """Changes the tree of one page."""
        links: Links = self.app.links  # type: ignore[attr-defined]
        for node in list(self.document.findall(nodes.literal)):
            if _inside(node, (nodes.reference, nodes.title, pending_xref, desc_signature)):
                continue
            target = links.find(node.astext(), _owner(node))
            if target is not None and (reference := self._reference(target, node)) is not None:
                node.replace_self(reference)

    def _reference(self, target: str, node: nodes.literal) -> nodes.reference | None:
        if target.startswith("https:"):
            return nodes.reference("", "", node.deepcopy(), refuri=target, internal=False, classes=["code-link"])
        entry = self.env.domains.python_domain.objects.get(target)
        if entry is None:
            return None
        builder, here = self.app.builder, self.env.current_document.docname
        made = make_refnode(builder, here, entry.docname, entry.node_id, node.deepcopy(), target)
        made["classes"].append("code-link")
        return made


def _owner(node: nodes.Node) -> str:
    """The class in whose docstring a node stands, or that of the method."""
    while (node := node.parent) is not None:  # type: ignore[assignment]
        if isinstance(node, desc) and isinstance(signature := node[0], desc_signature):
            owner = signature.get("class") or (signature.get("fullname") if node["objtype"] == "class" else "")
            return f"{signature['module']}.{owner}" if owner else ""
    return ""


def _inside(node: nodes.Node, kinds: tuple[type, ...]) -> bool:
    while (node := node.parent) is not None:  # type: ignore[assignment]
        if isinstance(node, kinds):
            return True
    return False


def from_docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Before napoleon."""
    lines[:] = docstrings.to_rst(lines)


def public_place(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Node) -> nodes.Node | None:
    """A type in a signature is known by where it is defined; it is documented by its public name."""
    name = app.defined.get(node.get("reftarget", ""))  # type: ignore[attr-defined]
    entry = env.domains.python_domain.objects.get(name) if name else None
    if entry is None:
        return None
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content, name)


def shorter(app: Sphinx, what: str, name: str, obj: Any, options: Any, *texts: str | None) -> Any:
    """Signature and return type as they are written: what Python makes of jaxtyping's names is long."""
    return tuple(map(docstrings.short_types, texts))


def all_are_there(app: Sphinx, env: BuildEnvironment) -> None:
    """Warns of a public name that no page has."""
    for name in documented().keys() - env.domains.python_domain.objects.keys():
        logging.getLogger(__name__).warning("%s is public, and on no page", name)


def setup(app: Sphinx) -> None:
    """Registers what is above."""
    app.links, app.defined = Links(), where_defined(documented())  # type: ignore[attr-defined]
    mathml.setup(app)
    app.add_post_transform(LinkCode)
    app.connect("autodoc-process-docstring", from_docstring, priority=400)
    app.connect("autodoc-process-signature", shorter)
    app.connect("missing-reference", public_place)
    app.connect("env-check-consistency", all_are_there)
