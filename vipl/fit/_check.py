"""What `fit` refuses, with the four lines."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vipl._types import PyTree
from vipl.errors import ProgramError, show_aval
from vipl.expectation import Expectation


def _error(summary: str, got: str, expected: str, fix: str) -> ProgramError:
    return ProgramError(summary, at="vipl.fit", got=got, expected=expected, fix=fix)


def check_arguments(objective: object, optimizer: Any) -> None:
    """Raises where these are not what `fit` takes."""
    if not isinstance(objective, Expectation):
        raise _error(
            "the objective is not an expectation.",
            type(objective).__name__,
            "what vipl.expectation returns",
            "decorate the function with @vipl.expectation",
        )
    name = type(optimizer).__name__
    if type(optimizer).__module__.startswith("numpyro"):
        raise _error(
            "the optimizer is one of NumPyro's.",
            f"numpyro.optim.{name}",
            "an optax optimizer",
            f"pass optax.{name.lower()}(step_size)" if hasattr(optax, name.lower()) else "pass e.g. optax.adam(1e-2)",
        )
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")) or isinstance(optimizer, type):
        is_factory = callable(optimizer) and getattr(optimizer, "__name__", "") in vars(optax)
        raise _error(
            "the optimizer is not an optax optimizer.",
            f"the function optax.{optimizer.__name__} itself" if is_factory else name,
            "an object with `init` and `update`",
            f"call it: optax.{optimizer.__name__}(1e-2)" if is_factory else "pass e.g. optax.adam(1e-2)",
        )


def as_arrays(tree: PyTree, what: str) -> PyTree:
    """The pytree with arrays as its leaves; raises where a leaf cannot be one.

    Args:
      tree: …, arrays, numbers, or what NumPy makes an array of (a data frame, a series).
      what: the argument's name.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
    arrays = []
    for path, leaf in leaves:
        try:
            number = isinstance(leaf, (bool, int, float, complex, jax.Array))  # NumPy would change its dtype
            arrays.append(jnp.asarray(leaf if number else np.asarray(leaf)))
        except (TypeError, ValueError):
            raise _error(
                f"the {what} are not arrays.",
                f"{show_aval(leaf)} at {what}{jax.tree_util.keystr(path)}",
                "a pytree of arrays and numbers",
                "convert it to numbers; close over what is not an array",
            ) from None
    return jax.tree.unflatten(treedef, arrays)


def check_params(params: PyTree) -> None:
    """Raises where a leaf of the parameters is not a float array."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    wrong = [(path, x) for path, x in leaves if not jnp.issubdtype(x.dtype, jnp.floating)]
    if wrong or not leaves:
        shown = ", ".join(f"{show_aval(x)} at params{jax.tree_util.keystr(path)}" for path, x in wrong[:3])
        raise _error(
            "the parameters are not float arrays.",
            shown or "no arrays",
            "a pytree with at least one leaf, all leaves float arrays",
            "write 0.0 for 0; close over what is not to be optimized",
        )


def check_batches(data: PyTree, batch_size: int) -> None:
    """Raises where the data have no batches of this size."""
    leaves = jax.tree_util.tree_leaves_with_path(data)
    shown = ", ".join(f"{show_aval(x)} at data{jax.tree_util.keystr(path)}" for path, x in leaves)
    if not leaves or any(x.ndim == 0 for _, x in leaves) or len({x.shape[0] for _, x in leaves}) != 1:
        raise _error(
            "the data's arrays do not share a leading axis, so that they have no batches.",
            shown or "no data",
            "arrays of the same number of rows",
            "put the rows first, and close over what has none; or leave batch_size out",
        )
    rows = leaves[0][1].shape[0]
    if batch_size > rows:
        raise _error(
            "the batch size does not fit the data.",
            f"batch_size={batch_size!r}, and {shown}",
            f"an integer from 1 to {rows}" if rows else "data that have rows",
            f"pass batch_size={min(rows, 32)}, or leave it out to use all rows" if rows else "leave batch_size out",
        )


def check_is_fit(resume: object, kind: type) -> None:
    """Raises where what is to be continued is not a fit."""
    if not isinstance(resume, kind):
        raise _error(
            "what is to be continued is not a fit.", type(resume).__name__, "what vipl.fit returned", "pass resume=fit"
        )


def check_resume(resume: Any, begun: Any) -> None:
    """Raises where a fit cannot be continued by one that the arguments would begin: `begun`, of no steps."""
    fix = "pass what the first fit got; to go on otherwise, begin a fit at its `params`"
    if resume.impl != begun.impl or not np.array_equal(resume.key, begun.key):
        raise _error(
            "the key is not that of the fit that is continued, so that its steps would not be those of one fit.",
            f"the {begun.impl} key {np.asarray(begun.key).tolist()}",
            f"the {resume.impl} key {np.asarray(resume.key).tolist()}",
            "pass the first fit's key; for other draws, begin a fit at its `params`",
        )
    if resume.batches != begun.batches:
        raise _error(
            "the batches are not those of the fit that is continued.", _show(begun.batches), _show(resume.batches), fix
        )
    for name, what in (("params", "parameters are"), ("opt_state", "optimizer's state is")):
        here, there = getattr(begun, name), getattr(resume, name)
        if _kinds(here) != _kinds(there):
            got, expected = _first_difference(name, here, there)
            raise _error(f"the {what} not of the kind of the fit that is continued.", got, expected, fix)


def _show(batches: tuple[int, int] | None) -> str:
    return "no batches" if batches is None else f"batch_size={batches[1]} of {batches[0]} rows"


def _kinds(tree: PyTree) -> tuple[object, list[tuple[tuple[int, ...], np.dtype]]]:
    return jax.tree.structure(tree), [(jnp.shape(x), jnp.result_type(x)) for x in jax.tree.leaves(tree)]


def _first_difference(name: str, here: PyTree, there: PyTree) -> tuple[str, str]:
    texts = [
        [f"{show_aval(x)} at {name}{jax.tree_util.keystr(path)}" for path, x in jax.tree_util.tree_leaves_with_path(t)]
        for t in (here, there)
    ]
    for got, expected in zip(*texts, strict=False):
        if got != expected:
            return got, expected
    return tuple(", ".join(t) or "no arrays" for t in texts)  # type: ignore[return-value]
