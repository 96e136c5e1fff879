"""Settings of JAX under which this package computes."""

import functools
from collections.abc import Callable
from typing import TypeVar

import jax

F = TypeVar("F", bound=Callable)


def with_own_settings(fn: F) -> F:
    """The function, with arithmetic that promotes ranks and types, and transfers to the device, whatever JAX is set to.

    They hold for a model that runs inside, too.
    """

    @functools.wraps(fn)
    def run(*args, **kwargs):
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"), jax.transfer_guard("allow"):
            return fn(*args, **kwargs)

    return run  # type: ignore[return-value]
