"""The steps of a fit, compiled once: how many are taken is an argument of the compiled program.

A step updates the parameters of each objective by its optimizer, once or several times. With several starts, all of
them take the step together, each with its own key.

Invariant: step t depends on the key, on t, and on the parameters and the optimizer's state before it, and on nothing
else.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from vipl._types import Array, ArrayLike, PRNGKeyArray, PyTree
from vipl.cache.programs import keep
from vipl.expectation import Expectation
from vipl.fit._ahead import Ahead, ahead_of, of_many, split
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
      taken: i[], steps taken.
      cause: i[], 0 while all is finite; else 4 times the objective's number plus an index into `CAUSES`.
      model: …, the state that the objectives return; None without one.
      averaged: …, the average of the parameters; None without one.
    """

    params: PyTree
    opt_state: PyTree
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


def compiled_steps(job: Job) -> Callable:
    """`(key, state, args, stop) -> ...`, `take_steps` of a job, compiled once for all jobs that read the same."""
    return keep("fit", (*job.objectives, *job.optimizers), job[2:], functools.partial(take_steps, job))


def take_steps(job: Job, key: PRNGKeyArray, state: State, args: Args, stop: ArrayLike) -> tuple[State, PyTree]:
    """Takes steps up to number `stop`, but no more than there is room for, and none after a number that is not finite.

    Returns:
      The state, and the record of each step, with a leading axis; zeros where no step was tried (`jax.debug_nans` takes
      any NaN for a fault).
      Where a number is not finite, `taken` does not count its step, and the rest of the state is what that step has
      made; `steps_before` undoes it. Of several starts each keeps the state before its step.
    """
    start = _number(job, state)
    step = split(functools.partial(_any_step, job), _ahead(job, key, args, start), state, args, start)
    records = step.kinds[1]
    room = room_for(job, records)
    end = jnp.minimum(stop, start + room)
    several = min(room, step.several)

    def goes_on(until):
        def goes(loop):
            goes = (loop[0].taken < until) & (loop[0].cause == 0)
            return goes if job.num_restarts is None else jnp.any(goes)

        return goes

    def take_several(loop):
        state, history = loop
        first = _number(job, state)
        numbers = first + jnp.arange(several, dtype=first.dtype)
        early = of_many(lambda i: step.early(_ahead(job, key, args, i)), key, numbers)

        def take_one(loop):
            state, history = loop
            i = _number(job, state)
            after, record = step.late(_entry(early, i - first), state, args, i)
            return after, jax.tree.map(functools.partial(_with_entry, i - start), history, record)

        until = jnp.minimum(end, first + several)
        return lax.while_loop(goes_on(until), take_one, (state, history))

    history = jax.tree.map(lambda x: jnp.zeros((room, *x.shape), x.dtype), records)
    return lax.while_loop(goes_on(end), take_several, (state, history))


def steps_before(take: Callable, key: PRNGKeyArray, before: State, args: Args, after: State) -> State:
    """The state after the steps that were taken, where one after them has made a number that is not finite.

    They are taken again, from the state before the call: a step that undoes itself would cost each step, and memory.

    Args:
      take: what `compiled_steps` returns.
      key: …
      before: the state with which it was called.
      args: …
      after: the state that it returned.
    """
    while int(after.taken) > int(before.taken):
        again, _ = take(key, before, args, int(after.taken))
        if int(again.cause) == 0:
            return again._replace(cause=after.cause)
        after = again  # of a device whose numbers are not the same each time
    return before._replace(cause=after.cause)


def record_kinds(job: Job, key: PRNGKeyArray, state: State, args: Args) -> PyTree:
    """The shapes and dtypes of what a step records."""
    return jax.eval_shape(lambda: _any_step(job, _ahead(job, key, args, i := _number(job, state)), state, args, i)[1])


def room_for(job: Job, records: PyTree) -> int:
    """The most steps of one call, by the size of what each records."""
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(records))
    return max(1, min(job.room, _BYTES // size))


def missing(dtype: np.dtype) -> float:
    """What stands for a number of a step that was not taken."""
    return jnp.nan if jnp.issubdtype(dtype, jnp.inexact) else 0


def _entry(tree: PyTree, number: ArrayLike) -> Any:
    at = functools.partial(lax.dynamic_index_in_dim, keepdims=False, allow_negative_indices=False)
    return jax.tree.map(lambda xs: at(xs, number), tree)


def _with_entry(number: ArrayLike, xs: Array, x: Array) -> Array:
    return lax.dynamic_update_index_in_dim(xs, x, number, 0, allow_negative_indices=False)


def _number(job: Job, state: State) -> Array:
    """The number of the next step; a start that goes on has taken as many as any."""
    return state.taken if job.num_restarts is None else jnp.max(state.taken)


def _ahead(job: Job, key: PRNGKeyArray, args: Args, i: Array) -> Ahead:
    return ahead_of(key, i, args, job.batch_size)


def _any_step(job: Job, ahead: Ahead, state: State, args: Args, i: Array) -> tuple[State, PyTree]:
    """Step i, of one start or of all."""
    return (_step if job.num_restarts is None else _step_of_all)(job, ahead, state, args, i)


def _step_of_all(job: Job, ahead: Ahead, states: State, args: Args, i: Array) -> tuple[State, PyTree]:
    """One step of all starts that have not stopped; those that have record nothing and stay what they are."""

    def one(ahead, state):
        after, record = _step(job, ahead, state, args, i)
        goes = state.cause == 0
        record = jax.tree.map(lambda x: jnp.where(goes, x, jnp.full((), missing(x.dtype), x.dtype)), record)
        kept = jax.tree.map(functools.partial(jnp.where, goes & (after.cause == 0)), after, state)
        return kept._replace(cause=jnp.where(goes, after.cause, state.cause)), record

    return jax.vmap(one)(ahead, states)


class _Moving(NamedTuple):
    """What the updates of a step change, one after the other."""

    params: PyTree
    opt_states: tuple[PyTree, ...]
    model: PyTree
    cause: Array


def _step(job: Job, ahead: Ahead, state: State, args: Args, i: Array) -> tuple[State, PyTree]:
    """Step i; what it makes where a number is not finite is to be thrown away."""
    batch = _batch(args, ahead.rows)
    moving, records = _before_step(job, state), []
    for number in range(len(job.objectives)):
        moving, record = _updates(job, number, ahead.key, moving, state.params, batch)
        records.append(record)
    cause = moving.cause.astype(state.cause.dtype)
    taken = i + (cause == 0).astype(i.dtype)
    averaged = state.averaged if job.average is None else _average(job, state.averaged, moving.params, i + 1)
    opt_states = job.by_name(moving.opt_states)
    return State(moving.params, opt_states, taken, cause, moving.model, averaged), job.by_name(records)


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
    """One update of an objective's parameters, by its gradient at `at`.

    Of several updates in a step, one that is not finite changes nothing, nor do those after it, so that what these
    record does not come from it.
    """

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
    cause = _cause(number, value, grads, moved, model if job.has_state else None)
    record = Record(value, _norm(grads), _learning_rate(opt_state), metrics)
    new = moved, opt_state, model
    if sum(job.turns or [1] * len(job.objectives)) > 1:
        cause = jnp.where(moving.cause == 0, cause, moving.cause)
        keep = functools.partial(jnp.where, cause == 0)
        new = jax.tree.map(keep, new, (part, opt_before, moving.model))
    moved, opt_state, model = new
    opt_states = (*moving.opt_states[:number], opt_state, *moving.opt_states[number + 1 :])
    return _Moving(put(job.owners, moving.params, number, moved), opt_states, model, cause), record


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
    ahead = _ahead(job, key, args, state.taken)
    batch, step_key = _batch(args, ahead.rows), ahead.key
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
            params, model = params
            return _value_anew(job, number, key, params, model, (batch,), own(job.owners, params, number))

        try:
            start, objective = _key_of(job, number, key, jnp.uint32(0)), job.objectives[number]
            found = unscaled_rows(
                value,
                start,
                (params, model),
                data,
                job.batch_size,
                (objective,),
                (number, len(job.objectives), job[2:]),
            )
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


def _cause(number: int, value: Array, grads: PyTree, moved: PyTree, model: PyTree) -> Array:
    """What is not finite in an update, the first of `CAUSES`; 0 where all is."""
    cause = jnp.int32(0)
    for kind, tree in ((4, model), (3, moved), (2, grads), (1, value)):
        floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
        if floats:
            finite = functools.reduce(operator.and_, (jnp.all(jnp.isfinite(x)) for x in floats))
            cause = lax.select(finite, cause, jnp.int32(kind + 4 * number))
    return cause


def _batch(args: Args, rows: Array | None) -> Args:
    return args if rows is None else jax.tree.map(lambda x: x[rows], args)
