"""Values whose derivative in some parameters would be wrong: it raises instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from vipl import _compat

_guard_p = _compat.define_guard_primitive("vipl_guard", lambda error, at: error(at))


def undifferentiable(error: Callable[[str], Exception], at: str) -> Callable:
    """`(value, parameters) -> value`, whose derivative in value or parameters raises `error(at)`.

    It raises when the derivative is traced, and only if one of them is differentiated.

    Args:
      error: makes the exception.
      at: its argument.
    """

    def guarded(value: Any, parameters: Any) -> Any:
        return _guard_p.bind(value, *jax.tree.leaves(parameters), error=error, at=at)

    return guarded
