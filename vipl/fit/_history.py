"""What a fit has recorded: one entry for each step that was tried.

Law: the history of n steps and then of m more is that of n + m steps.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vipl._types import Array, PyTree
from vipl.fit._check import check_history
from vipl.fit._steps import Job, Record

Parts = tuple[PyTree, ...]
"""A history in parts: pytrees of NumPy arrays that share the leading axis of steps."""

FIELDS = Record._fields


def length(part: PyTree) -> int:
    """How many steps a part has."""
    return len(jax.tree.leaves(part)[0])


def appended(parts: Parts, part: PyTree) -> Parts:
    """The history with a part more; short parts are joined, so that there are few."""
    if parts:
        check_history(parts[-1], part)
    while parts and length(parts[-1]) <= length(part):
        part = jax.tree.map(lambda *xs: np.concatenate(xs), parts[-1], part)
        parts = parts[:-1]
    return (*parts, part)


def joined(job: Job, parts: Parts, num_steps: int) -> dict[str, PyTree]:
    """The fields of a `Fit` that are its history, of `num_steps`: NaN (0 where there is none) for those not tried."""
    if not parts:
        nothing = np.zeros(0 if job.num_restarts is None else (0, job.num_restarts), jnp.result_type(float))
        parts = (job.by_name([Record(nothing, nothing)] * len(job.objectives)),)
    whole = jax.tree.map(lambda *xs: _padded(job, np.concatenate(xs), num_steps), *parts)
    records = job.in_order(whole)
    fields = {name: [getattr(record, name) for record in records] for name in FIELDS}
    return {name: None if all(x is None for x in found) else job.by_name(found) for name, found in fields.items()}


def recorded(job: Job, fields: dict[str, PyTree], taken: int) -> Parts:
    """The inverse of `joined`, of the steps that were taken."""
    if taken == 0:
        return ()
    each: dict[str, list[Any]] = {
        name: [None] * len(job.objectives) if x is None else job.in_order(x)
        for name, x in fields.items()
        if name in FIELDS
    }
    records = [Record(*(each[name][n] for name in FIELDS)) for n in range(len(job.objectives))]
    axis = 0 if job.num_restarts is None else 1
    return (jax.tree.map(lambda x: np.moveaxis(np.asarray(x), axis, 0)[:taken], job.by_name(records)),)


def _padded(job: Job, x: np.ndarray, num_steps: int) -> Array:
    fill = np.nan if jnp.issubdtype(x.dtype, jnp.inexact) else 0
    missing = np.full((num_steps - len(x), *x.shape[1:]), fill, x.dtype)
    x = np.concatenate([x, missing])
    # `jnp.asarray` would compile a program for each number of steps.
    return jax.device_put(x if job.num_restarts is None else np.moveaxis(x, 1, 0))


def means(job: Job, part: PyTree) -> str:
    """The mean of a part's estimates, as text; of several starts, of those that have not stopped."""

    def text(values):
        if job.num_restarts is not None:
            values = values[~np.isnan(values)]
        return f"{np.mean(values):.4f}" if np.size(values) else "nan"

    texts = [text(record.values) for record in job.in_order(part)]
    return texts[0] if job.names is None else ", ".join(f"{n} {t}" for n, t in zip(job.names, texts, strict=True))
