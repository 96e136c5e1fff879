"""Where a fit begins: objectives by name, starts and their keys, and the best of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from vipl._checks import whole_number
from vipl._types import Array, ArrayLike, PRNGKeyArray, PyTree
from vipl.expectation import Expectation
from vipl.fit._check import (
    as_arrays,
    check_arguments,
    check_direction,
    check_fraction,
    check_is_fit,
    check_names,
    check_no_labels,
    check_owned,
    check_params,
    check_restarts,
    labels_like,
)
from vipl.fit._parts import Owners, owners_of
from vipl.fit._steps import Job
from vipl.ir.keys import fold_tag, is_key

Named = tuple[tuple[Expectation, ...], tuple[optax.GradientTransformation, ...], tuple[str, ...] | None]


def named(objective: Any, optimizer: Any) -> Named:
    """Objectives, their optimizers, and their names; the names are None where there is one without a name."""
    if not isinstance(objective, Mapping) and not isinstance(optimizer, Mapping):
        check_arguments(objective, optimizer)
        return (objective,), (optimizer,), None
    check_names("objectives", objective, "optimizers", optimizer)
    names = tuple(objective)
    for name in names:
        check_arguments(objective[name], optimizer[name])
    return tuple(objective.values()), tuple(optimizer[name] for name in names), names


def directions(maximize: object, names: tuple[str, ...] | None) -> tuple[bool, ...]:
    """Whether each objective is maximized."""
    if isinstance(maximize, Mapping):
        check_names("objectives", dict.fromkeys(names or ()), "directions in `maximize`", maximize)
        return tuple(check_direction(maximize[name]) for name in names or ())
    return (check_direction(maximize),) * len(names or (None,))


def turns_of(turns: Any, names: tuple[str, ...] | None) -> tuple[int, ...] | None:
    """How many updates each objective makes in a step; None where all are made together."""
    if turns is None:
        return None
    check_names("objectives", dict.fromkeys(names or ()), "turns", turns)
    return tuple(whole_number(turns[name], f"turns[{name!r}]", "vipl.fit") for name in names or ())


def fraction(average: Any) -> float | None:
    """The fraction of the steps over which iterates are averaged."""
    if average is not None:
        check_fraction(average)
        average = float(average)
    return average


def keys_of(job: Job, key: PRNGKeyArray) -> PRNGKeyArray:
    """The key of a fit; with several starts, one for each of them, made of it."""
    if job.num_restarts is None:
        return key
    return jax.vmap(lambda r: fold_tag(key, "restart", r))(jnp.arange(job.num_restarts, dtype=jnp.uint32))


def starts(job: Job, key: PRNGKeyArray, params: PyTree, state: PyTree, resume: Any) -> tuple[PyTree, PyTree]:
    """Parameters and state at which a fit begins; with several starts they have a leading axis.

    Args:
      job: …
      key: of the fit.
      params: …, or a function from a key to them.
      state: …, or None.
      resume: the fit that is continued, whose parameters and state stand for those that are None.
    """
    if resume is not None and params is None:
        params = resume.params
    elif callable(params) and jax.tree_util.all_leaves([params]):

        def make(key):
            return jax.tree.map(strong, as_arrays(params(fold_tag(key, "init")), "params"))

        params = (make if job.num_restarts is None else jax.vmap(make))(keys_of(job, key))
    else:
        params = _for_each(job, as_arrays(params, "params"))
    if resume is not None and state is None:
        state = resume.state
    elif state is not None:
        state = _for_each(job, as_arrays(state, "state"))
    params = jax.tree.map(jnp.asarray, params)
    check_params(params)
    return jax.tree.map(strong, (params, state))


def _for_each(job: Job, tree: PyTree) -> PyTree:
    if job.num_restarts is None:
        return tree
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (job.num_restarts, *x.shape)), tree)


def owners_by(job: Job, params: PyTree, labels: PyTree) -> Owners:
    """Which objective moves each leaf; raises where one has none, or a leaf is of none."""
    if job.names is None:
        check_no_labels(labels)
        return owners_of(params)
    labels = labels(params) if callable(labels) else labels
    numbers = labels_like(job.names, params, labels)
    owners = owners_of(params, numbers)
    check_owned(job.names, owners)
    return owners


def strong(x: ArrayLike) -> Array:
    """An array that does not change its type when it is updated: a Python number has a weak one."""
    x = jnp.asarray(x)
    return x if is_key(x) or not x.weak_type else lax.convert_element_type(x, x.dtype)


# --- the best of several starts ---------------------------------------------------------------------------

_OF_ONE = ("key", "impl", "batches", "restarts")  # the fields of a fit that have no axis of starts


def all_starts(fit: Any, num_restarts: int | None, kind: type) -> Any:
    """The fit to go on from, with all its starts; raises where it is none, or has another number of them."""
    check_is_fit(fit, kind)
    found = None if fit.restarts is None else len(fit.restarts.stopped)
    check_restarts(found, num_restarts)
    return fit if fit.restarts is None else fit.restarts


def best_of(job: Job, fit: Any) -> Any:
    """The start whose estimates are best at the end, with `restarts` all of them."""
    best = int(np.argmax([_end_value(job, fit, r) for r in range(len(fit.stopped))]))
    names = [f.name for f in fields(fit) if f.name not in _OF_ONE]
    of_best = {name: jax.tree.map(lambda x: x[best], getattr(fit, name)) for name in names}
    return replace(fit, **of_best, restarts=fit)


def _end_value(job: Job, fit: Any, r: int) -> float:
    """The mean of the last tenth of a start's estimates, the larger the better; of several objectives, their sum.

    It is -inf for a start that has stopped before others.
    """
    taken = int(fit.stopped[r])
    if taken < int(np.max(fit.stopped)) or taken == 0:
        return -np.inf
    last = slice(taken - max(1, taken // 10), taken)
    each = zip(job.maximize, job.in_order(fit.values), strict=True)
    return float(sum((1 if up else -1) * np.mean(np.asarray(x)[r, last]) for up, x in each))
