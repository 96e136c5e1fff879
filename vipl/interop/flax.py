"""Flax NNX modules as parameters of programs.

A module that a program closes over is Python state, which staging must not see. So it is split before staging, into
a pytree of parameters and a function that puts the module together again, and merged inside the program:

    params, apply = functional(module);   apply(params)(x) = module(x).

Of a module with other state, as batch statistics, the state is an argument and a result:

    params, state, apply = functional(module, state=True);   y, new_state = apply(params, state)(x).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Generic, Literal, TypeVar, overload

import jax

from vipl._types import PyTree
from vipl.errors import ProgramError
from vipl.ir.frames import user_frame

M = TypeVar("M")


class Stateful(Generic[M]):
    """A module with its state; calling it, or one of its methods, returns the result and the new state.

    Each call starts from the same state: it changes nothing. What a call does to parameters is dropped.
    """

    def __init__(self, build: Callable[[], M], path: tuple[str, ...] = ()):
        """`path` are the names that lead to what is called."""
        self._build, self._path = build, path

    def __getattr__(self, name: str) -> Stateful[M]:
        """The method of this name."""
        if name.startswith("__"):  # as copies and pickles ask for
            raise AttributeError(name)
        return Stateful(self._build, (*self._path, name))

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, PyTree]:
        """The result and the new state."""
        from flax import nnx

        module = self._build()
        result = functools.reduce(getattr, self._path, module)(*args, **kwargs)  # type: ignore[operator]
        _, _, rest = nnx.split(module, nnx.Param, ...)
        return result, nnx.to_pure_dict(rest)


@overload
def functional(module: M, *, state: Literal[False] = False) -> tuple[PyTree, Callable[[PyTree], M]]: ...
@overload
def functional(
    module: M, *, state: Literal[True]
) -> tuple[PyTree, PyTree, Callable[[PyTree, PyTree], Stateful[M]]]: ...
def functional(module: Any, *, state: bool = False) -> Any:
    """Splits a Flax NNX module into its parameters and a function that rebuilds it.

    apply(params) is the module with those parameters; inside a program, call it on the program's argument. With
    `state=True`, apply(params, state)(x) is the pair of the module's result and its new state, and so are its methods.

    Args:
      module: an `nnx.Module`. Without `state=True` its only state is parameters (`nnx.Param`).
      state: whether the module's other state is split off as well.

    Returns:
      params: …, the parameters, a pytree of arrays.
      state: …, the other state, a pytree of arrays; with `state=True` only.
      apply: params -> module; with `state=True`, params, state -> `Stateful`.

    Raises:
      ProgramError: the argument is not a module; or, without `state=True`, the module has state that calling it
        changes, as batch statistics, which a program would lose; or it has random numbers, as dropout's.

    Example:
      >>> import jax.numpy as jnp, vipl.interop
      >>> from flax import nnx
      >>> params, apply = vipl.interop.flax.functional(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
      >>> apply(params)(jnp.ones(3)).shape
      (2,)
      >>> params, state, apply = vipl.interop.flax.functional(nnx.BatchNorm(3, rngs=nnx.Rngs(0)), state=True)
      >>> y, new_state = apply(params, state)(jnp.ones((5, 3)))
      >>> sorted(new_state)
      ['mean', 'var']
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
    kind, wanted = type(module).__name__, jax.tree.structure(nnx.to_pure_dict(params))

    def merged(params: PyTree, *more: PyTree) -> Any:
        try:
            return nnx.merge(graph, params, *more)
        except ValueError:
            if jax.tree.structure(params) == wanted:
                raise
            raise ProgramError(
                "the parameters are not those of the network.",
                at=f"what vipl.interop.flax.functional of {kind} returned, in {user_frame()}",
                got=_paths(params),
                expected=_paths(jax.tree.unflatten(wanted, range(wanted.num_leaves))),
                fix="pass the parameters that `functional` returned, or others of the same structure",
            ) from None

    _refuse_state(module, rest, only_random=state)
    if state:
        return (
            nnx.to_pure_dict(params),
            nnx.to_pure_dict(rest),
            lambda params, state: Stateful(lambda: merged(params, state)),
        )

    def apply(params: PyTree) -> Any:
        return merged(params)

    return nnx.to_pure_dict(params), apply


def _paths(tree: PyTree) -> str:
    """Where the leaves of a pytree stand."""
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    return ", ".join(f"params{path}" for path in paths[:4]) + (f", and {len(paths) - 4} more" if len(paths) > 4 else "")


def _refuse_state(module: object, rest: PyTree, *, only_random: bool) -> None:
    from flax import nnx

    flat = [(path, leaf, isinstance(leaf, nnx.RngState)) for path, leaf in nnx.to_flat_state(rest)]
    is_random = any(random for *_, random in flat)
    found = [(path, type(leaf).__name__) for path, leaf, random in flat if random or not only_random]
    if found:
        shown = ", ".join(f"{kind} at {'.'.join(map(str, path))}" for path, kind in found[:4])
        more = f", and {len(found) - 4} more" if len(found) > 4 else ""
        raise ProgramError(
            "a module has state that is not parameters, which a program would lose.",
            at=f"vipl.interop.flax.functional of {type(module).__name__}",
            got=shown + more,
            expected="nnx.Param only",
            fix="leave out Dropout and BatchNorm (LayerNorm has no state), and write noise as sites of the program"
            if is_random
            else "take the state along: params, state, apply = functional(module, state=True)",
        )
