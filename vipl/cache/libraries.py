"""What belongs to libraries, whose code does not change while a program runs, and what kind of class one is."""

from __future__ import annotations

import functools
import pathlib
import site
import sys
import sysconfig
import types

_PATHS = sysconfig.get_paths()
_PACKAGE = pathlib.Path(__file__).resolve().parent.parent
_LIBRARIES = tuple(
    {f"{p}/" for p in (*(_PATHS[k] for k in ("stdlib", "platstdlib", "purelib", "platlib")), *site.getsitepackages())}
)
_OWN = tuple(str(p) for p in _PACKAGE.iterdir() if p.stem != "demo")

HEAP_TYPE = 1 << 9
"""The flag of classes that are not defined in C."""


def of_library(filename: str, module: str | None) -> bool:
    """Whether code stands in the standard library, an installed package, or this one."""
    if filename.startswith("<"):
        if filename.startswith("<frozen"):
            return True
        known = sys.modules.get(module or "")
        return filename == "<string>" and known is not None and is_library_module(known)
    return filename.startswith((*_LIBRARIES, *_OWN)) or "site-packages/" in filename or "dist-packages/" in filename


_LIBRARY: dict[str, bool] = {"builtins": True, "__main__": False}


def is_library_module(module: types.ModuleType) -> bool:
    """Whether a module belongs to the standard library, an installed package, or this one."""
    name = module.__name__
    if name not in _LIBRARY or sys.modules.get(name) is not module:
        path = getattr(module, "__file__", None)
        known = of_library(path, None) if path else name in sys.builtin_module_names or hasattr(module, "__path__")
        if sys.modules.get(name) is not module:
            return known
        _LIBRARY[name] = known
    return _LIBRARY[name]


def is_library_class(cls: type) -> bool:
    """Whether a class is defined in a library, or in C."""
    module = sys.modules.get(cls.__module__)
    return not cls.__flags__ & HEAP_TYPE or (module is not None and is_library_module(module))


_ORDINARY_BASES = {"object", "ABC", "Generic", "Protocol", "type", "ABCMeta"}


@functools.lru_cache(maxsize=1024)
def has_library_base(cls: type) -> bool:
    """Whether a class has a base from a library that may look at its objects."""
    return any(is_library_class(c) and c.__name__ not in _ORDINARY_BASES for c in cls.__mro__)


def is_frozen_class(cls: type) -> bool:
    """Whether a class is a frozen dataclass."""
    return getattr(getattr(cls, "__dataclass_params__", None), "frozen", False)


@functools.lru_cache(maxsize=1024)
def slots_of(cls: type) -> tuple[str, ...]:
    """The names of the slots of a class and of its bases."""
    kinds = types.MemberDescriptorType
    return tuple(n for c in cls.__mro__ if c.__flags__ & HEAP_TYPE for n, v in vars(c).items() if isinstance(v, kinds))


def is_derived(cls: type, name: str) -> bool:
    """Whether an attribute is computed from others, and kept."""
    known = next((vars(c)[name] for c in cls.__mro__ if name in vars(c)), None)
    kind = type(known)
    return hasattr(kind, "__get__") and not hasattr(kind, "__set__") and not isinstance(known, types.FunctionType)
