"""What is public, and which names in code are links.

A name in backquotes that is public (`vipl.fit`, `FullRank`, `Posterior.sample`), or that an inventory has (`jax.vmap`),
leads to where it is documented. Everything else in backquotes stays code.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import vipl

INVENTORIES = Path(__file__).parent / "inventories"
SITES = {
    "jax": "https://docs.jax.dev/en/latest/",
    "numpyro": "https://num.pyro.ai/en/stable/",
    "flax": "https://flax.readthedocs.io/en/latest/",
    "optax": "https://optax.readthedocs.io/en/latest/",
}
# What pages call a module of another package, as its users do.
SHORT = {"dist": "numpyro.distributions", "jnp": "jax.numpy", "lax": "jax.lax", "nnx": "flax.nnx"}


def public_names(module: ModuleType) -> list[str]:
    """What a user may import from a module, submodules left out: `__all__`, or all without an underscore."""
    names = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
    return [name for name in names if _is_public(module, getattr(module, name))]


def _is_public(module: ModuleType, thing: Any) -> bool:
    """Whether it is for users; a file without `__all__` also has what it imports, and type variables."""
    if hasattr(module, "__all__") or hasattr(module, "__path__"):
        return not inspect.ismodule(thing)
    return getattr(thing, "__module__", None) == module.__name__ and callable(thing) and not isinstance(thing, TypeVar)


def public_modules() -> dict[str, ModuleType]:
    """`vipl`, the modules that it exports, and those below `vipl.interop`, by name."""
    found = {"vipl": vipl}
    for name in vipl.__all__:
        if inspect.ismodule(module := getattr(vipl, name)):
            found[module.__name__] = module
    below = [f"vipl.interop.{m.name}" for m in pkgutil.iter_modules(vipl.interop.__path__)]
    found |= {name: importlib.import_module(name) for name in below if not name.split(".")[-1].startswith("_")}
    found.pop("vipl.interop")
    return found


def documented() -> dict[str, Any]:
    """Every public object by the name that it is documented under: that at the top, if it stands there as well."""
    found: dict[str, Any] = {}
    top = [getattr(vipl, name) for name in public_names(vipl)]
    for module_name, module in public_modules().items():
        for name in public_names(module):
            thing = getattr(module, name)
            if module is vipl or not any(thing is other for other in top):
                found[f"{module_name}.{name}"] = thing
    return found


def where_defined(objects: dict[str, Any]) -> dict[str, str]:
    """From the place in which a thing is defined (`vipl.gen._program.Program`) to its public name."""
    return {f"{x.__module__}.{x.__qualname__}": name for name, x in objects.items() if hasattr(x, "__qualname__")}


def inventory(project: str) -> dict[str, tuple[str, str]]:
    """From a name of another package to its role (function, class, ...) and its place on that package's site.

    A line is `role name page`; "#" in a page stands for the name as an anchor.
    """
    lines = (INVENTORIES / f"{project}.txt").read_text().splitlines()
    rows = [line.split() for line in lines if line and not line.startswith("#")]
    return {name: (role, page.replace("$", name)) for role, name, page in rows}


class Links:
    """Which name leads where: to a public name of vipl, or to an address on another site."""

    def __init__(self) -> None:
        """Reads public names and inventories."""
        self.own = documented()
        self.other = {
            name: SITES[project] + page for project in SITES for name, (_, page) in inventory(project).items()
        }
        last: dict[str, list[str]] = {}
        for name in self.own:
            last.setdefault(name.split(".")[-1], []).append(name)
        self.by_last = {short: names[0] for short, names in last.items() if len(names) == 1}

    def find(self, code: str, owner: str = "") -> str | None:
        """The full name or the address that `code`, such as `vipl.fit(...)`, leads to.

        In the docstring of a class, `owner`, the name of one of its methods is that method.
        """
        if not (match := re.fullmatch(r"@?([A-Za-z_][\w.]*)(\((?:[^()]|\([^()]*\))*\))?", code)):
            return None
        name = match.group(1)
        if owner and "." not in name and (method := self._member(f"{owner}.{name}")):
            return method
        first, _, rest = name.partition(".")
        if first in SHORT and rest:
            name = f"{SHORT[first]}.{rest}"
        for candidate in (name, f"vipl.{name}", self.by_last.get(name)):
            if candidate in self.own:
                return candidate
        if name in self.other:
            return self.other[name]
        return self._member(name)

    def _member(self, name: str) -> str | None:
        """A method of a class that is documented: `Posterior.sample`, `vipl.Expectation.estimate`."""
        owner, _, member = name.rpartition(".")
        for candidate in (owner, f"vipl.{owner}", self.by_last.get(owner)):
            thing = self.own.get(candidate or "")
            if inspect.isclass(thing) and inspect.isfunction(vars(thing).get(member)):
                return f"{candidate}.{member}"
        return None
