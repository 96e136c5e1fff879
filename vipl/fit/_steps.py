"""The steps of a fit, compiled once: how many are taken is an argument of the compiled program.

A step updates the parameters of each objective by its optimizer, once or several times. With several starts, all of
them take the step together, each with its own key.

Invariant: step t depends on the key, on t, and on the parameters and the optimizer's state before it, and on nothing
else.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from vipl._types import Array, ArrayLike, PRNGKeyArray, PyTree
from vipl.cache.programs import keep
from vipl.expectation import Expectation
from vipl.fit._check import check_new_state
from vipl.fit._parts import FROZEN, Owners, own, put
from vipl.fit._rows import unscaled_rows
from vipl.ir.keys import fold_tag, is_key
from vipl.ir.probe import probing

Args = tuple[PyTree, ...]
"""The data, or a batch of them, as arguments of the objective: one, or none."""

MOST = 1 << 15
"""The most steps that are taken in one call: the length of the arrays of what they record."""

_BYTES = 1 << 24
"""The most bytes that these arrays take: where metrics are large, fewer steps are taken in one call."""

CAUSES = ("", "the objective's value", "the gradient", "the optimizer's update", "the new state")
"""What is not finite, by the number `kind_of_cause(State.cause)`."""

STOPPED_BEFORE = -1
"""The cause of a start that had stopped in the fit that is continued."""


class Job(NamedTuple):
    """What is compiled: all that `take_steps` does not trace.

    Attributes:
      objectives: …
      optimizers: …, one for each objective.
      batch_size: rows of a batch; None without batches.
      num_samples: runs that an estimate averages.
      maximize: for each objective, whether it is maximized.
      names: the names of several objectives; None for one without a name.
      owners: which objective moves each leaf of the parameters.
      turns: how many updates each objective makes in a step, with the parameters that those before it have left; None
        if all update from the parameters before the step.
      has_state: whether the objectives take and return a state.
      average: the fraction of the steps over which the average of iterates is taken, about; None for no average.
      num_restarts: how many starts there are; None without an axis of starts.
      room: the most steps of one call.
    """

    objectives: tuple[Expectation, ...]
    optimizers: tuple[optax.GradientTransformation, ...]
    batch_size: int | None = None
    num_samples: int = 1
    maximize: tuple[bool, ...] = (True,)
    names: tuple[str, ...] | None = None
    owners: Owners = (0,)
    turns: tuple[int, ...] | None = None
    has_state: bool = False
    average: float | None = None
    num_restarts: int | None = None
    room: int = MOST

    def name(self, number: int | None = None) -> str:
        """The name of an objective, or of all."""
        if number is None:
            return ", ".join(self.name(n) for n in range(len(self.objectives)))
        if self.names is not None:
            return self.names[number]
        return getattr(self.objectives[number].fn, "__name__", "the objective")

    def by_name(self, values: Sequence[PyTree]) -> PyTree:
        """Something of each objective: a dict by their names, or the only one."""
        return values[0] if self.names is None else dict(zip(self.names, values, strict=True))

    def in_order(self, named: PyTree) -> list[PyTree]:
        """The inverse of `by_name`."""
        return [named] if self.names is None else [named[name] for name in self.names]


class State(NamedTuple):
    """What is carried from step to step; with several starts each has a leading axis.

    Attributes:
      params: …, the parameters.
      opt_state: …, the optimizer's state; of several objectives a dict.
      order: i[n], this epoch's permutation of the rows; i[0] without batches.
      taken: i[], steps taken.
      cause: i[], 0 while all is finite; else 4 times the objective's number plus an index into `CAUSES`.
      model: …, the state that the objectives return; None without one.
      averaged: …, the average of the parameters; None without one.
    """

    params: PyTree
    opt_state: PyTree
    order: Array
    taken: Array
    cause: Array
    model: PyTree = None
    averaged: PyTree = None


class Record(NamedTuple):
    """What is kept of the updates of one objective; each leaf has a leading axis of steps once it is history.

    Attributes:
      values: f[], the estimate before the update.
      gradient_norms: f[], the Euclidean norm of the gradient.
      learning_rates: f[], that of optax.inject_hyperparams; None where there is none.
      metrics: …, the auxiliary output; None where there is none.
    """

    values: Array | np.ndarray
    gradient_norms: Array | np.ndarray
    learning_rates: Array | np.ndarray | None = None
    metrics: PyTree = None


def kind_of_cause(cause: Array) -> int:
    """The index into `CAUSES`."""
    return (int(cause) - 1) % 4 + 1


def number_of_cause(cause: Array) -> int:
    """The number of the objective."""
    return (int(cause) - 1) // 4


def first_state(
    job: Job, key: PRNGKeyArray, params: PyTree, opt_state: PyTree, rows: int, taken: int, **rest: PyTree
) -> State:
    """The state before step `taken`; `rest` are fields that are None by default."""
    order = jnp.arange(rows, dtype=jnp.int32)
    if job.batch_size is not None:
        order = _permutation(key, jnp.int32(taken) // (rows // job.batch_size), order)
    return State(params, opt_state, order, jnp.int32(taken), jnp.int32(0), **rest)


def compiled_steps(job: Job) -> Callable:
    """`(key, state, args, stop) -> ...`, `take_steps` of a job, compiled once for all jobs that read the same."""
    return keep("fit", (*job.objectives, *job.optimizers), job[2:], functools.partial(take_steps, job))


def take_steps(job: Job, key: PRNGKeyArray, state: State, args: Args, stop: ArrayLike) -> tuple[State, PyTree]:
    """Takes steps up to number `stop`, but no more than there is room for, and none after a number that is not finite.

    Returns:
      The state, and the record of each step, with a leading axis; NaN (0 where there is none) where no step was tried.
    """
    step = _step if job.num_restarts is None else _step_of_all
    records = record_kinds(job, key, state, args)
    room = room_for(job, records)
    start = _number(job, state)
    end = jnp.minimum(stop, start + room)

    def goes_on(loop):
        state, _ = loop
        goes = (state.taken < end) & (state.cause == 0)
        return goes if job.num_restarts is None else jnp.any(goes)

    def body(loop):
        state, history = loop
        i = _number(job, state)
        after, record = step(job, key, state, args, i)
        return after, jax.tree.map(lambda xs, x: xs.at[i - start].set(x), history, record)

    history = jax.tree.map(lambda x: jnp.full((room, *x.shape), missing(x.dtype), x.dtype), records)
    return lax.while_loop(goes_on, body, (state, history))


def record_kinds(job: Job, key: PRNGKeyArray, state: State, args: Args) -> PyTree:
    """The shapes and dtypes of what a step records."""
    step = _step if job.num_restarts is None else _step_of_all
    return jax.eval_shape(lambda: step(job, key, state, args, _number(job, state))[1])


def room_for(job: Job, records: PyTree) -> int:
    """The most steps of one call, by the size of what each records."""
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(records))
    return max(1, min(job.room, _BYTES // size))


def missing(dtype: np.dtype) -> float:
    """What stands for a number of a step that was not taken."""
    return jnp.nan if jnp.issubdtype(dtype, jnp.inexact) else 0


def _number(job: Job, state: State) -> Array:
    """The number of the next step; a start that goes on has taken as many as any."""
    return state.taken if job.num_restarts is None else jnp.max(state.taken)


def _step_of_all(job: Job, keys: PRNGKeyArray, states: State, args: Args, i: Array) -> tuple[State, PyTree]:
    """One step of all starts that have not stopped; those that have record nothing and stay what they are."""

    def one(key, state):
        after, record = _step(job, key, state, args, i)
        goes = state.cause == 0
        record = jax.tree.map(lambda x: jnp.where(goes, x, jnp.full((), missing(x.dtype), x.dtype)), record)
        return jax.tree.map(functools.partial(jnp.where, goes), after, state), record

    return jax.vmap(one)(keys, states)


class _Moving(NamedTuple):
    """What the updates of a step change, one after the other."""

    params: PyTree
    opt_states: tuple[PyTree, ...]
    model: PyTree
    cause: Array


def _step(job: Job, key: PRNGKeyArray, state: State, args: Args, i: Array) -> tuple[State, PyTree]:
    """Step i; changes nothing but the order of the rows where a number is not finite."""
    order, first = _order_at(job, key, state.order, i)
    batch, step_key = _batch(job, args, order, first), fold_tag(key, "step", i.astype(jnp.uint32))
    moving, records = _before_step(job, state), []
    for number in range(len(job.objectives)):
        moving, record = _updates(job, number, step_key, moving, state.params, batch)
        records.append(record)
    params, opt_state, model = moving.params, job.by_name(moving.opt_states), moving.model
    cause = moving.cause.astype(state.cause.dtype)
    keep = functools.partial(jnp.where, cause == 0)
    if sum(job.turns or [1] * len(job.objectives)) > 1:  # an update before the one that is not finite is undone, too
        params, opt_state, model = jax.tree.map(
            keep, (params, opt_state, model), (state.params, state.opt_state, state.model)
        )
    taken = i + (cause == 0).astype(i.dtype)
    averaged = state.averaged
    if job.average is not None:
        averaged = jax.tree.map(keep, _average(job, averaged, params, i + 1), averaged)
    return State(params, opt_state, order, taken, cause, model, averaged), job.by_name(records)


def _before_step(job: Job, state: State) -> _Moving:
    return _Moving(state.params, tuple(job.in_order(state.opt_state)), state.model, jnp.int32(0))


def _updates(
    job: Job, number: int, step_key: PRNGKeyArray, moving: _Moving, before: PyTree, batch: Args
) -> tuple[PyTree, PyTree]:
    """All updates of one objective in a step, and their record; with several turns it has a leading axis of them."""

    def update(moving, turn):
        at = moving.params if job.turns is not None else before
        return _update(job, number, _key_of(job, number, step_key, turn), moving, at, batch)

    turns = 1 if job.turns is None else job.turns[number]
    return update(moving, jnp.uint32(0)) if turns == 1 else lax.scan(update, moving, jnp.arange(turns, dtype="uint32"))


def _key_of(job: Job, number: int, step_key: PRNGKeyArray, turn: Array) -> PRNGKeyArray:
    return step_key if job.names is None else fold_tag(step_key, f"objective {job.names[number]}", turn)


def _update(
    job: Job, number: int, key: PRNGKeyArray, moving: _Moving, at: PyTree, batch: Args
) -> tuple[_Moving, Record]:
    """One update of an objective's parameters, by its gradient at `at`; changes nothing where one was not finite."""

    def estimate(part):
        return _estimate(job, number, key, put(job.owners, at, number, part), moving.model, batch)

    part, opt_before = own(job.owners, at, number), moving.opt_states[number]
    (value, (model, metrics)), grads = jax.value_and_grad(estimate, has_aux=True)(part)
    sign = -1.0 if job.maximize[number] else 1.0
    optimizer = optax.with_extra_args_support(job.optimizers[number])
    descent, loss = jax.tree.map(lambda g: sign * g, grads), sign * value
    updates, opt_state = optimizer.update(
        descent, opt_before, part, value=loss, grad=descent, value_fn=lambda part: sign * estimate(part)[0]
    )
    moved = optax.apply_updates(part, updates)
    bad = jnp.stack([~_finite(x) for x in (value, grads, moved, *([model] if job.has_state else []))])
    cause = jnp.where(jnp.any(bad), jnp.argmax(bad) + 1 + 4 * number, 0).astype(moving.cause.dtype)
    if job.names is not None:
        cause = jnp.where(moving.cause == 0, cause, moving.cause)
    keep = functools.partial(jnp.where, cause == 0)
    record = Record(value, _norm(grads), _learning_rate(opt_state), metrics)
    part, opt_state, model = jax.tree.map(keep, (moved, opt_state, model), (part, opt_before, moving.model))
    opt_states = (*moving.opt_states[:number], opt_state, *moving.opt_states[number + 1 :])
    return _Moving(put(job.owners, moving.params, number, part), opt_states, model, cause), record


def _average(job: Job, averaged: PyTree, params: PyTree, n: Array) -> PyTree:
    """The average after n steps: a_n = a_{n-1} + min(1, 1 / (fraction n)) (x_n - a_{n-1}), and frozen leaves."""
    leaves, treedef = jax.tree.flatten(params)
    weight = jnp.minimum(1.0, 1.0 / (job.average * n.astype(float)))  # type: ignore[operator]
    return treedef.unflatten(
        x if owner == FROZEN else a + weight.astype(x.dtype) * (x - a)
        for owner, x, a in zip(job.owners, leaves, jax.tree.leaves(averaged), strict=True)
    )


def _norm(grads: PyTree) -> Array:
    """The Euclidean norm of all numbers of a pytree."""
    return jnp.sqrt(functools.reduce(jnp.add, [jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)]))


def _learning_rate(opt_state: PyTree) -> Array | None:
    """The first learning rate that an optax.inject_hyperparams keeps in the state; None without one."""
    states = jax.tree.leaves(opt_state, is_leaf=lambda s: hasattr(s, "hyperparams"))
    rates = [s.hyperparams["learning_rate"] for s in states if "learning_rate" in getattr(s, "hyperparams", ())]
    return rates[0] if rates else None


def what_is_not_finite(job: Job, key: PRNGKeyArray, state: State, args: Args) -> str | None:
    """The sentence that names the site at which the step after `state` is not finite; runs the step once more."""
    order, first = _order_at(job, key, state.order, state.taken)
    batch, step_key = _batch(job, args, order, first), fold_tag(key, "step", state.taken.astype(jnp.uint32))
    number = number_of_cause(state.cause)
    turns = 1 if job.turns is None else job.turns[number]

    def run(state):
        moving, found = _before_step(job, state), []
        for earlier in range(number):
            moving, _ = _updates(job, earlier, step_key, moving, state.params, batch)
        for turn in range(turns):
            at = state.params if job.turns is None else moving.params
            turn_key = _key_of(job, number, step_key, jnp.uint32(turn))
            value = functools.partial(_value_anew, job, number, turn_key, at, moving.model, batch)
            found.append(jax.value_and_grad(value)(own(job.owners, at, number)))
            if turn + 1 < turns:
                moving, _ = _update(job, number, turn_key, moving, at, batch)
        return found

    with probing() as report:
        jax.block_until_ready(jax.jit(run)(state))
        jax.effects_barrier()
    return report.sentence(of_derivative=CAUSES[kind_of_cause(state.cause)] == "the gradient")


def rows_that_count_once(
    job: Job, key: PRNGKeyArray, params: PyTree, model: PyTree, data: PyTree
) -> tuple[str, str] | None:
    """A site of rows that count once, and one that all rows share; see `vipl.fit._rows`. None where none is found."""
    assert job.batch_size is not None
    if job.num_restarts is not None:
        params, model = jax.tree.map(lambda x: x[0], (params, model))
    for number in range(len(job.objectives)):

        def value(key: PRNGKeyArray, params: PyTree, batch: PyTree, number: int = number) -> Array:
            part = own(job.owners, params, number)
            return _value_anew(job, number, key, params, model, (batch,), part)

        try:
            found = unscaled_rows(value, _key_of(job, number, key, jnp.uint32(0)), params, data, job.batch_size)
        except Exception:  # it takes no other number of rows, say; the fit itself tells what is wrong
            continue
        if found is not None:
            return found
    return None


def _value_anew(
    job: Job, number: int, key: PRNGKeyArray, params: PyTree, model: PyTree, batch: Args, part: PyTree
) -> Array:
    args = (put(job.owners, params, number, part), *([model] if job.has_state else []), *batch)
    out = job.objectives[number].estimate_anew(key, *args, num_samples=job.num_samples)
    return out[0] if job.objectives[number].has_aux else out


def _estimate(
    job: Job, number: int, key: PRNGKeyArray, params: PyTree, model: PyTree, batch: Args
) -> tuple[PyTree, PyTree]:
    """`(value, (model, metrics))`."""
    objective = job.objectives[number]
    args = (params, *([model] if job.has_state else []), *batch)
    out = objective.estimate(key, *args, num_samples=job.num_samples)
    value, aux = out if objective.has_aux else (out, None)
    if job.has_state and objective.has_aux:
        model, aux = _new_state(job, number, model, aux)
    return value, (model, jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, aux))


def _new_state(job: Job, number: int, model: PyTree, aux: PyTree) -> tuple[PyTree, PyTree]:
    """The new state in auxiliary output, and its metrics: it is the state, or a pair of the state and metrics.

    Of several samples the state's floats are the mean, and what is not a float is that of the first sample.
    """
    is_pair = isinstance(aux, tuple) and len(aux) == 2 and jax.tree.structure(aux) != jax.tree.structure(model)
    new, metrics = aux if is_pair else (aux, None)
    if job.num_samples > 1:
        new = jax.tree.map(lambda x: jnp.mean(x, 0) if jnp.issubdtype(x.dtype, jnp.floating) else x[0], new)
    check_new_state(job.name(number), model, new)
    return new, metrics


def _finite(tree: PyTree) -> Array:
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in floats])) if floats else jnp.bool_(True)


# --- batches ------------------------------------------------------------------------------------------------


def _permutation(key: PRNGKeyArray, epoch: Array, order: Array) -> Array:
    fresh = jax.random.permutation(fold_tag(key, "epoch", epoch.astype(jnp.uint32)), order.shape[0])
    return fresh.astype(order.dtype)


def _order_at(job: Job, key: PRNGKeyArray, order: Array, i: Array) -> tuple[Array, Array | int]:
    """The permutation of the epoch of step i, and the first of its rows that the step uses."""
    if job.batch_size is None:
        return order, 0
    per_epoch = order.shape[-1] // job.batch_size
    epoch, info = i // per_epoch, i % per_epoch
    order = lax.cond(info == 0, lambda: _permutation(key, epoch, order), lambda: order)
    return order, info * job.batch_size


def _batch(job: Job, args: Args, order: Array, info: Array | int) -> tuple[PyTree, ...]:
    if job.batch_size is None:
        return args
    rows = lax.dynamic_slice_in_dim(order, info, job.batch_size)
    return jax.tree.map(lambda x: x[rows], args)
