"""Programs over many devices.

Invariant of devices: a program over many devices is the program on one.

Inside a program all axes of a mesh are Auto: XLA spreads what is computed, whatever the types of the arguments say.
What comes out is of the arguments' mesh, and the same on all devices. Inside `shard_map` all of a program differs along
the axes along which its key or an argument does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vipl import _jax
from vipl._jax import ShapedArray
from vipl._types import Array, PyTree
from vipl.ir.primitives import explicit_inside

_OF_EXPLICIT_AXES = ("context mesh", "axis names that are of type Auto")  # messages of JAX


def on_devices(fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """A function of pytrees of arrays, as programs run over the devices of its arguments."""

    def run(*args: PyTree) -> PyTree:
        axes = frozenset().union(*map(_jax.varying, jax.tree.leaves(args)))
        with _jax.vary_along(axes | _jax.axes_that_vary()):
            return fn(*jax.tree.map(vary, args))

    def over(*args: PyTree) -> PyTree:
        meshes = (jax.sharding.get_abstract_mesh(), *map(_jax.mesh_of, jax.tree.leaves(args)))
        mesh = next((m for m in meshes if jax.sharding.AxisType.Explicit in (m.axis_types or ())), None)
        if mesh is None:
            return run(*args)
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        try:
            return jax.sharding.auto_axes(run, out_sharding=everywhere)(*args)
        except ValueError as error:
            if not any(text in str(error) for text in _OF_EXPLICIT_AXES):
                raise
            raise explicit_inside() from error

    return over


def vary(x: Any, axes: frozenset[str] | None = None) -> Any:
    """`x`, of a type that says that it differs along axes of a `shard_map`; None: those of the program."""
    missing = (_jax.axes_that_vary() if axes is None else axes) - _jax.varying(x)
    return jax.lax.pcast(x, tuple(sorted(missing)), to="varying") if missing else x


def zeros(like: Array | ShapedArray) -> Array:
    """Zeros of the shape and dtype of an array."""
    return vary(jnp.zeros(like.shape, like.dtype))
