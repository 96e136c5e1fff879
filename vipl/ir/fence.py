"""Values that XLA computes once.

XLA fuses a cheap value into everything that reads it, and computes it again in each. Where n values are made of one
another, as the draws of sites that each read the one before, the last fusion holds all of them, and the compiled
program has n² / 2 of their equations. XLA takes divisions to be dear and does not repeat them; so a value that is
divided by a one which XLA does not know for one is computed once. Invariant: the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vipl._types import Array, PRNGKeyArray
from vipl.ir.keys import is_key

FEW = 8
"""Up to how many sites a value may be made of and be left to XLA."""

SMALL = 1 << 16
"""Of how many numbers a value is at most; of larger ones the time counts, not the code."""


def fence_of(drawn: Array | PRNGKeyArray) -> Callable[[Array], Array]:
    """The function that returns its argument, computed once: x / 1, where the 1 is made of a random number.

    XLA does not take 0 times a float for 0, since the float may be infinite. It turns a division by one number for all
    elements into a multiplication by its inverse, which it repeats; so each element has a 1 of its own.
    """
    bits = jnp.ravel(jax.random.key_data(drawn) if is_key(drawn) else drawn)[:1].astype(jnp.float32)
    number = jnp.sum(jnp.where(jnp.isfinite(bits), bits, 0.0))  # 0 where nothing was drawn, or something infinite

    def fence(x: Array) -> Array:
        if is_key(x) or x.dtype == bool or x.size > SMALL:
            return x
        ones = 1.0 + 0.0 * (number * jnp.arange(1.0, 1.0 + x.size, dtype=jnp.float32).reshape(x.shape))
        return jax.lax.div(x, ones.astype(x.dtype))

    return fence


def fence_together(fence: Callable[[Array], Array], arrays: Sequence[Array]) -> list[Array]:
    """Fences arrays of which each is read once, which XLA would fuse into what reads it: those alike as one array."""
    alike: dict[Any, list[int]] = {}
    for i, x in enumerate(arrays):
        alike.setdefault((x.shape, x.dtype), []).append(i)
    fenced: dict[int, Array] = {}
    for numbers in alike.values():
        fenced |= zip(numbers, fence(jnp.stack([arrays[i] for i in numbers])), strict=True)
    return [fenced[i] for i in range(len(arrays))]
