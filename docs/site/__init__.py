"""The documentation site: `python -m docs.site` builds it, with Sphinx, from the pages, notebooks and docstrings.

    pages.py        which pages there are; writes the source tree, in the layout of the repository
    docstrings.py   Google-style docstrings as reStructuredText
    names.py        what is public; names in code that become links
    mathml.py       formulas as MathML, without JavaScript
    conf.py         Sphinx's settings
    inventories/    where JAX, NumPyro, Flax and optax document their names

The site is in `docs/_build/html`; the source tree beside it is made anew by each build, and is not to be edited.
"""
