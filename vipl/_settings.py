"""Settings of JAX under which this package computes."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax

F = TypeVar("F", bound=Callable)


@contextlib.contextmanager
def own_settings() -> Iterator[None]:
    """Arithmetic that promotes ranks and types, and numbers that go to the device, whatever the settings of JAX.

    They hold for a model that runs inside, too.
    """
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"), jax.transfer_guard("allow"):
        yield


def with_own_settings(fn: F) -> F:
    """The function under `own_settings`."""

    @functools.wraps(fn)
    def run(*args, **kwargs):
        with own_settings():
            return fn(*args, **kwargs)

    return run  # type: ignore[return-value]
