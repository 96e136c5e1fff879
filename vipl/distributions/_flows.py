"""Transforms and distributions that hold functions with parameters: the parameters become a part of the pytree.

NumPyro keeps the network of a flow, and the drift of an EulerMaruyama, as static data, out of sight of every
derivative. Here a function that is a `functools.partial`, or a pytree that can be called (`jax.tree_util.Partial`, a
module of equinox), is kept as a pytree.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpyro.distributions as dist
from jax.tree_util import Partial
from numpyro.distributions import constraints, transforms

from vipl._types import Array, ArrayLike, PyTree


class WithFunctions(transforms.Transform):
    """A transform some attributes of which are functions with parameters."""

    def __init__(self, template: transforms.Transform, functions: Mapping[str, Callable]):
        """Takes the transform without these functions, and the functions by the names of the attributes."""
        self.template, self.functions = template, functions

    def tree_flatten(self) -> tuple[tuple[object, ...], tuple[tuple[str, ...], dict[str, object]]]:
        """Pytree interface."""
        return (self.template, self.functions), (("template", "functions"), {})

    @property
    def whole(self) -> Any:
        """The transform that it stands for."""
        return _replaced(self.template, self.functions)

    @property
    def domain(self) -> constraints.Constraint:
        """Of the transform."""
        return self.whole.domain

    @property
    def codomain(self) -> constraints.Constraint:
        """Of the transform."""
        return self.whole.codomain

    @property
    def sign(self) -> ArrayLike:
        """Of the transform."""
        return self.whole.sign

    def __call__(self, x: Array) -> Array:
        """The image."""
        return self.whole(x)

    def _inverse(self, y: Array) -> Array:
        return self.whole._inverse(y)

    def call_with_intermediates(self, x: Array) -> tuple[Array, PyTree | None]:
        """The image, and what the Jacobian needs."""
        return self.whole.call_with_intermediates(x)

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: PyTree | None = None) -> Array:
        """The log of the volume's change."""
        return self.whole.log_abs_det_jacobian(x, y, intermediates)

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of the transform."""
        return self.whole.forward_shape(shape)

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of the transform."""
        return self.whole.inverse_shape(shape)


def _replaced(t: transforms.Transform, attributes: Mapping[str, object]) -> transforms.Transform:
    new = copy.copy(t)
    new._inv = None  # the inverse that NumPyro keeps is that of the old one
    for name, value in attributes.items():
        setattr(new, name, value)
    return new


def with_functions(t: transforms.Transform) -> transforms.Transform:
    """The same transform, with the parameters of its functions in the pytree; itself where there are none."""
    if isinstance(t, transforms.ComposeTransform):
        parts = [with_functions(p) for p in t.parts]
        return t if all(a is b for a, b in zip(parts, t.parts, strict=True)) else _replaced(t, {"parts": parts})
    functions = {k: f for k, v in vars(t).items() if (f := _as_pytree(v)) is not None}
    return WithFunctions(_replaced(t, dict.fromkeys(functions)), functions) if functions else t


def with_parameters(d: dist.Distribution) -> dist.Distribution:
    """The same distribution, with the parameters of its functions in the pytree; itself where there are none."""
    static = {name: vars(d).get(name) for name in type(d).gather_pytree_aux_fields()}
    functions = {name: f for name, v in static.items() if (f := _as_pytree(v)) is not None}
    if not functions:
        return d
    new = copy.copy(d)
    vars(new).update(functions)
    new.__class__ = _class_with(type(d), frozenset(functions))
    return new


@functools.lru_cache(maxsize=256)
def _class_with(cls: type[dist.Distribution], names: frozenset[str]) -> type[dist.Distribution]:
    """The class with some static fields as a part of the pytree."""
    data = (*cls.gather_pytree_data_fields(), *sorted(names))
    static = tuple(name for name in cls.gather_pytree_aux_fields() if name not in names)
    fields = {"gather_pytree_data_fields": lambda: data, "gather_pytree_aux_fields": lambda: static}
    return type(cls.__name__, (cls,), {name: staticmethod(fn) for name, fn in fields.items()})


def _as_pytree(f: object) -> Callable | None:
    """A function with parameters as a pytree; None for anything else."""
    if isinstance(f, (transforms.Transform, constraints.Constraint, dist.Distribution)) or not callable(f):
        return None
    if isinstance(f, functools.partial) and not isinstance(f, Partial):
        return Partial(f.func, *f.args, **f.keywords)
    return f if not jax.tree_util.all_leaves([f]) else None
