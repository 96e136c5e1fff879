"""NumPyro's distributions, with stable densities in the place of those that lose digits or have wrong derivatives.

Parameters of the functions that they hold are a part of the pytree (`_flows`).

What is wrong with a family, and what is done instead, stands in the file of its kind: `_flips`, `_counts`, `_inflated`,
`_gammas`, `_tails`, `_truncated`, `_censored`. `tests/distributions/test_families.py` holds them to it.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import numpy as np
import numpyro.distributions as dist
from numpyro.distributions.transforms import Transform

from vipl.distributions import _censored, _counts, _flips, _gammas, _inflated, _tails, _truncated
from vipl.distributions._flows import with_functions, with_parameters

T = TypeVar("T")

_STABLE = {
    cls.__base__: cls
    for module in (_flips, _counts, _inflated, _gammas, _tails, _truncated, _censored)
    for cls in vars(module).values()
    if isinstance(cls, type) and cls.__module__ == module.__name__
}
"""NumPyro's class -> the class that stands in its place."""


def stabilize(d: T) -> T:
    """The same distribution, with the densities of this module in it and in its parts; anything else as it is."""
    if not isinstance(d, dist.Distribution):
        return d
    changes = {name: new for name, part in vars(d).items() if (new := _stable_part(part)) is not part}
    if arrays := {name: x for name, x in vars(d).items() if isinstance(x, np.ndarray)}:
        structure = type(d).gather_pytree_aux_fields()  # counts there may change in place
        changes |= {name: x.copy() for name, x in arrays.items() if name in structure}
    cls = _STABLE.get(type(d))
    if cls is None and not changes:
        return with_parameters(d)
    new = copy.copy(d)
    for name, part in changes.items():
        setattr(new, name, part)
    if cls is not None:
        new.__class__ = cls
    return with_parameters(new)


def _stable_part(part: object) -> object:
    """An attribute of a distribution, with the distributions and transforms in it replaced; itself where none is."""
    if not isinstance(part, (list, tuple)) or not any(isinstance(x, (dist.Distribution, Transform)) for x in part):
        return stabilize(part)
    new = type(part)([with_functions(x) if isinstance(x, Transform) else stabilize(x) for x in part])
    return part if all(a is b for a, b in zip(new, part, strict=True)) else new
