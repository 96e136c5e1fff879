"""The public face with its signatures looked at in each call, by beartype: kinds, shapes and dtypes of jaxtyping."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from typing import Any

from beartype import BeartypeConf, beartype
from jaxtyping import jaxtyped

import vipl
from vipl import _settings
from vipl._settings import with_own_settings

CHECK = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as Python's own rules of types have it

MODULES = (vipl, vipl.objectives, vipl.inference, vipl.diagnostics, vipl.testing, vipl.distributions)
CLASSES = (
    vipl.Posterior,
    vipl.Expectation,
    vipl.Source,
    vipl.Program,
    vipl.Trace,
    vipl.Fit,
    vipl.guides.MeanField,
    vipl.guides.FullRank,
)


def public_functions() -> Iterator[tuple[Any, str, Any]]:
    """(where it stands, name, function) of all functions and methods that are looked at."""
    for place in (*MODULES, *CLASSES):
        for name, thing in list(vars(place).items()):
            if name.startswith("_") or not inspect.isfunction(thing):
                continue
            if inspect.isclass(place) or thing.__module__.partition(".")[0] == "vipl":
                yield place, name, thing


def typed(fn: Any) -> Any:
    """A function that raises jaxtyping.TypeCheckError where arguments or result are not what its signature says."""
    if fn.__code__.co_filename == _settings.__file__:  # its own signature takes anything
        return with_own_settings(typed(fn.__wrapped__))
    return jaxtyped(typechecker=CHECK)(fn)


@functools.cache
def typed_functions() -> list[tuple[Any, str, Any]]:
    """`public_functions`, typed."""
    return [(place, name, typed(fn)) for place, name, fn in public_functions()]
