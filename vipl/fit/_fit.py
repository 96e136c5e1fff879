"""`fit`: stochastic gradient ascent on an objective.

    params_{t+1} = params_t + update(optimizer, ∇̂L(params_t, batch_t)),

with ∇̂L the derivative of `objective.estimate`, and the update's sign that of ascent or descent.

Law: what step t does depends on the key, on t, and on the parameters before it; not on how many steps are compiled
together, nor on the progress bar.

Not here: stopping rules, averages of iterates, schedules (they are the optimizer's).
"""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from tqdm.auto import tqdm

from vipl._errors import ProgramError, show_aval
from vipl.core._keys import as_key, fold_tag
from vipl.estimators import Expectation

# The bar moves, and an interrupt is noticed, this often.
_CHUNKS = 50

_CAUSES = ("", "the objective's value", "the gradient", "the optimizer's update")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Fit:
    """What `fit` returns.

    Attributes:
      params: …, after the last step taken.
      opt_state: …, the optimizer's state, after the last step taken.
      values: f[num_steps], the objective's estimate before each step; NaN after `stopped`.
      stopped: i[], steps taken; below `num_steps` only if a value, a gradient or an update was not finite.
    """

    params: Any
    opt_state: Any
    values: Any
    stopped: Any


def fit(
    objective: Expectation,
    params: Any,
    optimizer: optax.GradientTransformation,
    *,
    key: Any,
    data: Any = None,
    num_steps: int,
    batch_size: int | None = None,
    num_samples: int = 1,
    maximize: bool = True,
    progress: bool = True,
) -> Fit:
    """Maximizes an objective over its first argument by stochastic gradients.

    max over params of L(params, data) = E[objective(params, data)];  with `batch_size`, of the mean of
    L(params, batch) over the batches of an epoch.

    The steps are compiled once. Step t uses the key folded with t, so that results depend neither on how many steps
    run together nor on `progress`.

    Args:
      objective: made by `vipl.expectation`; called as `objective(params)`, or as `objective(params, data)` if there is
        data. Auxiliary output is dropped.
      params: …, a pytree of float arrays, where to begin.
      optimizer: an optax optimizer, as for minimization.
      key: PRNG key.
      data: …, a pytree of arrays; None calls the objective without it.
      num_steps: how many steps to take.
      batch_size: None gives the objective all data at every step. A number gives it that many rows: the arrays of
        `data` then share their leading axis, each epoch is a fresh random permutation, and its last incomplete
        batch is dropped. The objective scales its terms, if it should estimate that of all data.
      num_samples: how many independent runs each estimate averages.
      maximize: False minimizes.
      progress: whether to show a progress bar with the mean of the latest estimates.

    Returns:
      A `Fit`. Where the value, the gradient or the update is not finite, nothing is replaced: a RuntimeWarning names
      the step, and `params` stay those before it.

    Raises:
      ProgramError: an argument does not fit; the message says which.

    Example:
      >>> import jax, numpyro.distributions as dist, optax, vipl
      >>> @vipl.expectation
      ... def loss(m):
      ...     return (vipl.sample("x", dist.Normal(m, 1.0)) - 3.0) ** 2
      >>> options = {"num_steps": 500, "maximize": False, "progress": False}
      >>> found = vipl.fit(loss, 0.0, optax.adam(0.05), key=jax.random.key(0), num_samples=8, **options)
      >>> bool(abs(found.params - 3.0) < 0.3)
      True
    """
    _check_arguments(objective, optimizer, num_steps)
    params, data = jax.tree.map(_strong, params), jax.tree.map(jnp.asarray, data)
    _check_params(params)
    if batch_size is not None:
        _check_batches(data, batch_size)
    args = () if data is None else (data,)
    job = _Job(objective, optimizer, min(num_steps, -(-num_steps // _CHUNKS)), batch_size, num_samples, maximize)
    rows = 0 if batch_size is None else jax.tree.leaves(data)[0].shape[0]
    state = _State(params, optimizer.init(params), jnp.arange(rows, dtype=jnp.int32), jnp.int32(0), jnp.int32(0))
    state, values = _run(job, as_key(key), jax.tree.map(_strong, state), args, num_steps, progress)
    if state.cause != 0:
        _warn(job, state, values)
    return Fit(state.params, state.opt_state, jnp.asarray(values), state.taken)


class _Job(NamedTuple):
    """What is compiled: the static half of a chunk's arguments."""

    objective: Expectation
    optimizer: optax.GradientTransformation
    length: int
    batch_size: int | None
    num_samples: int
    maximize: bool


class _State(NamedTuple):
    """What is carried from step to step.

    Attributes:
      params: …, the parameters.
      opt_state: …, the optimizer's state.
      order: i[n], this epoch's permutation of the rows; i[0] without batches.
      taken: i[], steps taken.
      cause: i[], index into `_CAUSES`; 0 while all is finite.
    """

    params: Any
    opt_state: Any
    order: Any
    taken: Any
    cause: Any


def _run(job: _Job, key: Any, state: _State, args: Any, num_steps: int, progress: bool) -> tuple[_State, np.ndarray]:
    """Takes the steps, chunk by chunk, under a bar."""
    values = np.full(num_steps, np.nan, _value_dtype(job, key, state, args))
    with tqdm(total=num_steps, desc=_name(job), disable=not progress, dynamic_ncols=True) as bar:
        for start in range(0, num_steps, job.length):
            state, chunk = _chunk(job, key, state, args, start, num_steps)
            here = slice(start, start + job.length)
            values[here] = np.asarray(chunk)[: num_steps - start]
            bar.set_postfix_str(f"{np.mean(values[here]):.4f}", refresh=False)
            bar.update(int(state.taken) - start)
            if state.cause != 0:
                break
    return state, values


def _name(job: _Job) -> str:
    return getattr(job.objective.fn, "__name__", "the objective")


def _value_dtype(job: _Job, key: Any, state: _State, args: Any) -> Any:
    return jax.eval_shape(lambda: _estimate(job, key, state.params, _batch(job, args, state.order, 0))).dtype


@functools.partial(jax.jit, static_argnums=0)
def _chunk(job: _Job, key: Any, state: _State, args: Any, start: Any, num_steps: Any) -> Any:
    """Takes `job.length` steps, fewer where `num_steps` or a non-finite number comes first.

    Returns:
      The state, and f[length], the estimate before each step; NaN where no step was tried.
    """
    dtype = _value_dtype(job, key, state, args)

    def body(state, i):
        todo = (i < num_steps) & (state.cause == 0)
        nothing = (state, jnp.full((), jnp.nan, dtype))
        return lax.cond(todo, lambda: _step(job, key, state, args, i), lambda: nothing)

    return lax.scan(body, state, start + jnp.arange(job.length, dtype=jnp.int32))


def _step(job: _Job, key: Any, state: _State, args: Any, i: Any) -> Any:
    """One step; changes nothing but the order of the rows where a number is not finite."""
    order, place = _order_at(job, key, state.order, i)
    batch, step_key = _batch(job, args, order, place), fold_tag(key, "step", i.astype(jnp.uint32))
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
    taken = state.taken + (cause == 0).astype(state.taken.dtype)
    return _State(params, opt_state, order, taken, cause), value


def _estimate(job: _Job, key: Any, params: Any, batch: Any) -> Any:
    out = job.objective.estimate(key, params, *batch, num_samples=job.num_samples)
    return out[0] if job.objective.has_aux else out


def _finite(tree: Any) -> Any:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))


# --- batches ------------------------------------------------------------------------------------------------


def _order_at(job: _Job, key: Any, order: Any, i: Any) -> Any:
    """The permutation of the epoch of step i, and the first of its rows that the step uses."""
    if job.batch_size is None:
        return order, 0
    per_epoch = order.shape[0] // job.batch_size
    epoch, place = i // per_epoch, i % per_epoch
    fresh = functools.partial(jax.random.permutation, x=order.shape[0])
    epoch_key = fold_tag(key, "epoch", epoch.astype(jnp.uint32))
    order = lax.cond(place == 0, lambda: fresh(epoch_key).astype(order.dtype), lambda: order)
    return order, place * job.batch_size


def _batch(job: _Job, args: Any, order: Any, place: Any) -> Any:
    if job.batch_size is None:
        return args
    rows = lax.dynamic_slice_in_dim(order, place, job.batch_size)
    return jax.tree.map(lambda x: x[rows], args)


# --- messages -----------------------------------------------------------------------------------------------


def _strong(x: Any) -> Any:
    """An array that does not change its type when it is updated: a Python number has a weak one."""
    x = jnp.asarray(x)
    return lax.convert_element_type(x, x.dtype) if x.weak_type else x


def _error(summary: str, got: str, expected: str, mend: str) -> ProgramError:
    return ProgramError(summary, at="vipl.fit", got=got, expected=expected, mend=mend)


def _check_arguments(objective: Any, optimizer: Any, num_steps: Any) -> None:
    if not isinstance(objective, Expectation):
        raise _error(
            "the objective is not an expectation.",
            type(objective).__name__,
            "what vipl.expectation returns",
            "decorate the function with @vipl.expectation",
        )
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise _error(
            "the optimizer is not an optax optimizer.",
            type(optimizer).__name__,
            "an object with `init` and `update`",
            "pass e.g. optax.adam(1e-2)",
        )
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
        raise _error("num_steps is not a positive integer.", repr(num_steps), "at least 1", "pass e.g. num_steps=1000")


def _check_params(params: Any) -> None:
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


def _check_batches(data: Any, batch_size: Any) -> None:
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
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or not 1 <= batch_size <= rows:
        raise _error(
            "the batch size does not fit the data.",
            f"batch_size={batch_size!r}, and {shown}",
            f"an integer from 1 to {rows}",
            f"pass batch_size={min(rows, 32)}, or leave it out to use all rows",
        )


def _warn(job: _Job, state: _State, values: np.ndarray) -> None:
    step = int(state.taken)
    warnings.warn(
        f"vipl.fit stopped at step {step} of {len(values)} of {_name(job)}: {_CAUSES[int(state.cause)]} is not finite "
        f"(the estimate there is {values[step]}). The parameters are those before the step; "
        f"`values` is NaN after it.",
        RuntimeWarning,
        stacklevel=3,
    )
