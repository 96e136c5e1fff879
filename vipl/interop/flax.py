"""Flax NNX modules as parameters of programs.

A module that a program closes over is Python state, which staging must not see. So it is split before staging, into
a pytree of parameters and a function that puts the module together again, and merged inside the program:

    params, apply = functional(module);   apply(params)(x) = module(x).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from vipl._types import PyTree
from vipl.errors import ProgramError

M = TypeVar("M")


def functional(module: M) -> tuple[PyTree, Callable[[PyTree], M]]:
    """Splits a Flax NNX module into its parameters and a function that rebuilds it.

    apply(params) is the module with those parameters; inside a program, call it on the program's argument.

    Args:
      module: an `nnx.Module` whose only state is parameters (`nnx.Param`).

    Returns:
      params: …, the parameters, a pytree of arrays.
      apply: params -> module.

    Raises:
      ProgramError: the argument is not a module; or the module has state that calling it changes, as dropout's random
        numbers or batch statistics, which a program would lose.

    Example:
      >>> import jax.numpy as jnp, vipl.interop
      >>> from flax import nnx
      >>> params, apply = vipl.interop.flax.functional(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
      >>> apply(params)(jnp.ones(3)).shape
      (2,)
    """
    from flax import nnx

    if not isinstance(module, nnx.Module):
        raise ProgramError(
            "the argument is not a Flax NNX module.",
            at="vipl.interop.flax.functional",
            got=module.__name__ + " itself" if isinstance(module, type) else type(module).__name__,
            expected="an instance of nnx.Module",
            fix="pass a module, e.g. nnx.Linear(3, 2, rngs=nnx.Rngs(0))",
        )
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    _refuse_state(module, rest)

    def apply(params: PyTree) -> M:
        return nnx.merge(graph, params)

    return nnx.to_pure_dict(params), apply


def _refuse_state(module: object, rest: PyTree) -> None:
    from flax import nnx

    found = [(path, type(leaf).__name__) for path, leaf in nnx.to_flat_state(rest)]
    if found:
        shown = ", ".join(f"{kind} at {'.'.join(map(str, path))}" for path, kind in found[:4])
        more = f", and {len(found) - 4} more" if len(found) > 4 else ""
        raise ProgramError(
            "a module has state that is not parameters, which a program would lose.",
            at=f"vipl.interop.flax.functional of {type(module).__name__}",
            got=shown + more,
            expected="nnx.Param only",
            fix="leave out Dropout and BatchNorm (LayerNorm has no state), and write noise as sites of the program",
        )
