"""Whose leaves are whose: which leaves of the parameters an optimizer moves, and which are frozen.

Every leaf has an owner: the number of the objective that moves it, or `FROZEN`. A tree in which the leaves of all other
owners are None has the owner's leaves alone, in the places where they were; optax passes over None.

Law: `put(owners, params, n, own(owners, params, n))` is `params`; frozen leaves are never written.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vipl._types import PyTree

Owners = tuple[int, ...]
"""The owner of each leaf, in order."""

FROZEN = -1
"""The owner of a leaf that nothing moves: one that is not a float array."""


def owners_of(params: PyTree, numbers: PyTree = 0) -> Owners:
    """The owners of the leaves.

    Args:
      params: …, a pytree of arrays.
      numbers: the owner of each float leaf, a pytree like `params`; or one number for all.
    """
    leaves = jax.tree.leaves(params)
    each = [numbers] * len(leaves) if isinstance(numbers, int) else jax.tree.leaves(numbers)
    return tuple(n if jnp.issubdtype(x.dtype, jnp.floating) else FROZEN for x, n in zip(leaves, each, strict=True))


def own(owners: Owners, params: PyTree, number: int) -> PyTree:
    """The parameters with None in the place of all leaves that are not the owner's."""
    leaves, treedef = jax.tree.flatten(params)
    return treedef.unflatten([x if owner == number else None for owner, x in zip(owners, leaves, strict=True)])


def put(owners: Owners, params: PyTree, number: int, part: PyTree) -> PyTree:
    """The parameters with the owner's leaves replaced by those of `part`."""
    leaves, treedef = jax.tree.flatten(params)
    new = iter(jax.tree.leaves(part))
    return treedef.unflatten([next(new) if owner == number else x for owner, x in zip(owners, leaves, strict=True)])
