"""The steps of a fit, compiled once: how many are taken is an argument of the compiled program.

Invariant: step t depends on the key, on t, and on the parameters and the optimizer's state before it, and on nothing
else.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from vipl._types import Array, ArrayLike, Int, PRNGKeyArray, PyTree
from vipl.cache.programs import keep
from vipl.expectation import Expectation
from vipl.ir.keys import fold_tag
from vipl.ir.probe import probing

MOST = 1 << 15
"""The most steps that are taken in one call: the length of the array of their estimates."""

CAUSES = ("", "the objective's value", "the gradient", "the optimizer's update")
"""What is not finite, by the number `State.cause`."""


class Job(NamedTuple):
    """What is compiled: all that `take_steps` does not trace."""

    objective: Expectation
    optimizer: optax.GradientTransformation
    batch_size: int | None
    num_samples: int
    maximize: bool

    @property
    def name(self) -> str:
        """The objective's name."""
        return getattr(self.objective.fn, "__name__", "the objective")


class State(NamedTuple):
    """What is carried from step to step.

    Attributes:
      params: …, the parameters.
      opt_state: …, the optimizer's state.
      order: i[n], this epoch's permutation of the rows; i[0] without batches.
      taken: i[], steps taken.
      cause: i[], index into `CAUSES`; 0 while all is finite.
    """

    params: PyTree
    opt_state: PyTree
    order: Int[Array, " n"]
    taken: Int[Array, ""]
    cause: Int[Array, ""]


def first_state(job: Job, key: PRNGKeyArray, params: PyTree, opt_state: PyTree, rows: int, taken: int) -> State:
    """The state before step `taken`."""
    order = jnp.arange(rows, dtype=jnp.int32)
    if job.batch_size is not None:
        order = _permutation(key, jnp.int32(taken) // (rows // job.batch_size), order)
    return State(params, opt_state, order, jnp.int32(taken), jnp.int32(0))


def compiled_steps(job: Job) -> Callable:
    """`(key, state, args, stop) -> ...`, `take_steps` of a job, compiled once for all jobs that read the same."""
    static = (job.batch_size, job.num_samples, job.maximize)
    return keep("fit", (job.objective, job.optimizer), static, functools.partial(take_steps, job))


def take_steps(
    job: Job, key: PRNGKeyArray, state: State, args: tuple[PyTree, ...], stop: ArrayLike
) -> tuple[State, Array]:
    """Takes steps up to number `stop`, but no more than `MOST`, and none after a number that is not finite.

    Returns:
      The state, and f[MOST], the estimate before each step; NaN where no step was tried.
    """
    start = state.taken
    end = jnp.minimum(stop, start + MOST)
    estimates = jnp.full(MOST, jnp.nan, _value_dtype(job, key, state, args))

    def goes_on(loop):
        state, _ = loop
        return (state.taken < end) & (state.cause == 0)

    def body(loop):
        state, estimates = loop
        after, value = _step(job, key, state, args)
        return after, estimates.at[state.taken - start].set(value)

    return lax.while_loop(goes_on, body, (state, estimates))


def _step(job: Job, key: PRNGKeyArray, state: State, args: tuple[PyTree, ...]) -> tuple[State, Array]:
    """One step; changes nothing but the order of the rows where a number is not finite."""
    i = state.taken
    order, info = _order_at(job, key, state.order, i)
    batch, step_key = _batch(job, args, order, info), fold_tag(key, "step", i.astype(jnp.uint32))
    value, grads = jax.value_and_grad(functools.partial(_estimate, job, step_key))(state.params, batch)
    sign = -1.0 if job.maximize else 1.0
    optimizer = optax.with_extra_args_support(job.optimizer)
    updates, opt_state = optimizer.update(
        jax.tree.map(lambda g: sign * g, grads), state.opt_state, state.params, value=sign * value
    )
    params = optax.apply_updates(state.params, updates)
    bad = jnp.stack([~_finite(value), ~_finite(grads), ~_finite(params)])
    cause = jnp.where(jnp.any(bad), jnp.argmax(bad) + 1, 0).astype(state.cause.dtype)
    keep = functools.partial(jnp.where, cause == 0)
    params, opt_state = jax.tree.map(keep, (params, opt_state), (state.params, state.opt_state))
    taken = i + (cause == 0).astype(i.dtype)
    return State(params, opt_state, order, taken, cause), value


def what_is_not_finite(job: Job, key: PRNGKeyArray, state: State, args: tuple[PyTree, ...]) -> str | None:
    """The sentence that names the site at which the step after `state` is not finite; runs the step once more."""
    order, info = _order_at(job, key, state.order, state.taken)
    batch, step_key = _batch(job, args, order, info), fold_tag(key, "step", state.taken.astype(jnp.uint32))

    def value(params):
        out = job.objective.estimate_anew(step_key, params, *batch, num_samples=job.num_samples)
        return out[0] if job.objective.has_aux else out

    with probing() as report:
        jax.block_until_ready(jax.jit(jax.value_and_grad(value))(state.params))
        jax.effects_barrier()
    return report.sentence(of_derivative=CAUSES[int(state.cause)] == "the gradient")


def _value_dtype(job: Job, key: PRNGKeyArray, state: State, args: tuple[PyTree, ...]) -> np.dtype:
    return jax.eval_shape(lambda: _estimate(job, key, state.params, _batch(job, args, state.order, 0))).dtype


def _estimate(job: Job, key: PRNGKeyArray, params: PyTree, batch: tuple[PyTree, ...]) -> Array:
    out = job.objective.estimate(key, params, *batch, num_samples=job.num_samples)
    return out[0] if job.objective.has_aux else out


def _finite(tree: PyTree) -> Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))


# --- batches ------------------------------------------------------------------------------------------------


def _permutation(key: PRNGKeyArray, epoch: Array, order: Array) -> Array:
    fresh = jax.random.permutation(fold_tag(key, "epoch", epoch.astype(jnp.uint32)), order.shape[0])
    return fresh.astype(order.dtype)


def _order_at(job: Job, key: PRNGKeyArray, order: Array, i: Array) -> tuple[Array, ArrayLike]:
    """The permutation of the epoch of step i, and the first of its rows that the step uses."""
    if job.batch_size is None:
        return order, 0
    per_epoch = order.shape[0] // job.batch_size
    epoch, info = i // per_epoch, i % per_epoch
    order = lax.cond(info == 0, lambda: _permutation(key, epoch, order), lambda: order)
    return order, info * job.batch_size


def _batch(job: Job, args: tuple[PyTree, ...], order: Array, info: ArrayLike) -> tuple[PyTree, ...]:
    if job.batch_size is None:
        return args
    rows = lax.dynamic_slice_in_dim(order, info, job.batch_size)
    return jax.tree.map(lambda x: x[rows], args)
