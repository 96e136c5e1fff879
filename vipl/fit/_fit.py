"""`fit`: stochastic gradient ascent on an objective.

    params_{t+1} = params_t + update(optimizer, ∇̂L(params_t, batch_t)),

with ∇̂L the derivative of `objective.estimate`, and the update's sign that of ascent or descent.

Invariants:

- What step t does depends on the key, on t, and on the parameters before it; not on how many steps are taken, or taken
  together, nor on the progress bar. So n steps and then m more are n + m steps, bit for bit.
- Whatever ends a fit, the steps that were taken are not lost.

Not here: stopping rules, averages of iterates, schedules (they are the optimizer's).
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from tqdm.auto import tqdm

from vipl._checks import whole_number
from vipl._types import Array, ArrayLike, Float, Int, PRNGKeyArray, PyTree, Shaped
from vipl.expectation import Expectation
from vipl.fit._check import as_arrays, check_arguments, check_batches, check_is_fit, check_params, check_resume
from vipl.fit._steps import CAUSES, MOST, Job, State, compiled_steps, first_state, what_is_not_finite
from vipl.ir.keys import as_key

# The bar moves, and an interrupt is noticed, about this often.
_SECONDS = 0.25


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Fit:
    """What `fit` returns.

    Attributes:
      params: …, after the last step taken.
      opt_state: …, the optimizer's state, after the last step taken.
      values: f[n], the objective's estimate before each step, those of a fit that was continued included; NaN after
        `stopped`.
      stopped: i[], steps taken in all; below n only if a value, a gradient or an update was not finite, or if the fit
        was interrupted.
      key: u32[...], the bits of the key.
      impl: the name of the key's generator.
      batches: how many rows the data have, and how many a batch; None without batches.
    """

    params: PyTree
    opt_state: PyTree
    values: Float[Array, " n"]
    stopped: Int[Array, ""] | int
    key: Shaped[Array, "..."]
    impl: str = field(metadata={"static": True})
    batches: tuple[int, int] | None = field(metadata={"static": True})


def fit(
    objective: Expectation,
    params: PyTree,
    optimizer: optax.GradientTransformation,
    *,
    key: PRNGKeyArray,
    data: PyTree = None,
    num_steps: int,
    batch_size: int | None = None,
    num_samples: int = 1,
    maximize: bool = True,
    progress: bool = True,
    resume: Fit | None = None,
) -> Fit:
    """Maximizes an objective over its first argument by stochastic gradients.

    max over params of L(params, data) = E[objective(params, data)];  with `batch_size`, of the mean of
    L(params, batch) over the batches of an epoch.

    The steps are compiled once, for any number of them. Step t uses the key folded with t, so that results depend
    neither on how many steps run together nor on `progress`, and n steps and then m more are n + m steps, bit for bit.

    Args:
      objective: made by `vipl.expectation`; called as `objective(params)`, or as `objective(params, data)` if there is
        data. Auxiliary output is dropped.
      params: …, a pytree of float arrays, where to begin. With `resume` their values are not looked at, and None will
        do.
      optimizer: an optax optimizer, as for minimization.
      key: PRNG key.
      data: …, a pytree of arrays; None calls the objective without it.
      num_steps: how many steps to take; with `resume`, how many more.
      batch_size: None gives the objective all data at every step. A number gives it that many rows: the arrays of
        `data` then share their leading axis, each epoch is a fresh random permutation, and its last incomplete
        batch is dropped. The objective scales its terms, if it should estimate that of all data.
      num_samples: how many independent runs each estimate averages.
      maximize: False minimizes.
      progress: whether to show a progress bar with the mean of the latest estimates.
      resume: a fit to go on from: its parameters, optimizer's state, place in the epoch and number of the step. It has
        to have the same key, batches, and kinds of parameters and optimizer's state. A fit that was interrupted goes
        on; one that stopped at a number that is not finite tries that step again.

    Returns:
      A `Fit`. Where the value, the gradient or the update is not finite, nothing is replaced: a RuntimeWarning names
      the step and, where it is found, the site; `params` stay those before it. An interrupt (Ctrl-C) ends the fit with
      a RuntimeWarning, and the fit so far is returned; a second one while that is made raises.

    Raises:
      ProgramError: an argument does not fit; the message says which.
      Exception: what the objective or a callback raises while steps are taken; its attribute `fit` is the fit so far.

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
    check_arguments(objective, optimizer)
    num_steps = whole_number(num_steps, "num_steps", "vipl.fit")
    num_samples = whole_number(num_samples, "num_samples", "vipl.fit")
    key, data, batches = as_key(key), as_arrays(data, "data"), None
    if batch_size is not None:
        batch_size = whole_number(batch_size, "batch_size", "vipl.fit")
        check_batches(data, batch_size)
        batches = (jax.tree.leaves(data)[0].shape[0], batch_size)
    if resume is not None:
        check_is_fit(resume, Fit)
        params = resume.params if params is None else params
    params = jax.tree.map(_strong, as_arrays(params, "params"))
    check_params(params)
    opt_state = jax.tree.map(_strong, optimizer.init(params))
    bits, impl = jax.random.key_data(key), str(jax.random.key_impl(key))
    begun = Fit(params, opt_state, jnp.zeros(0), 0, bits, impl, batches)
    if resume is not None:
        check_resume(resume, begun)
        begun = resume
    job = Job(objective, optimizer, batches and batches[1], num_samples, maximize)
    params, opt_state = jax.tree.map(_strong, (begun.params, begun.opt_state))
    taken = int(begun.stopped)
    state = first_state(job, key, params, opt_state, batches[0] if batches else 0, taken)
    done = _Done(begun, state, (np.asarray(begun.values)[:taken],) if taken else (), taken + num_steps)
    return _run(job, key, done, () if data is None else (data,), progress)


class _Done(NamedTuple):
    """What is done of a fit.

    Attributes:
      begun: the fit that is continued; one of no steps where there is none.
      state: after the last call that has returned.
      estimates: those before each step that was tried, in parts.
      stop: how many steps there are to be in all.
    """

    begun: Fit
    state: State
    estimates: tuple[np.ndarray, ...]
    stop: int

    def as_fit(self) -> Fit:
        """The fit so far."""
        dtype = self.estimates[-1].dtype if self.estimates else jnp.result_type(float)
        missing = np.full(self.stop - sum(map(len, self.estimates)), np.nan, dtype)
        values = jnp.asarray(np.concatenate([*self.estimates, missing]))
        state = self.state
        return replace(self.begun, params=state.params, opt_state=state.opt_state, values=values, stopped=state.taken)


def _run(job: Job, key: PRNGKeyArray, done: _Done, args: tuple[PyTree, ...], progress: bool) -> Fit:
    """Takes the steps; whatever ends them, what is done is returned, or handed on with the exception.

    What is done changes by one assignment, so that an interrupt at any moment finds all of it of one step.
    """
    try:
        for done in _calls(job, key, done, args, progress):  # noqa: B007, B020
            pass
        if done.state.cause != 0:
            _warn_of_number(job, done, _site_of_number(job, key, done, args))
        return done.as_fit()
    except KeyboardInterrupt:
        _warn(
            f"vipl.fit was interrupted after {done.state.taken} of {done.stop} steps of {job.name}. The fit so far is "
            "returned: its `values` are NaN after these, and vipl.fit(..., resume=fit) goes on."
        )
        return done.as_fit()
    except Exception as error:
        if done.state.taken > done.begun.stopped:
            error.fit = done.as_fit()  # type: ignore[attr-defined]
            error.add_note(
                f"vipl.fit: {done.state.taken} steps were taken before. The fit so far is this exception's attribute "
                "`fit`, and vipl.fit(..., resume=error.fit) goes on."
            )
        raise


def _calls(job: Job, key: PRNGKeyArray, done: _Done, args: tuple[PyTree, ...], progress: bool) -> Iterator[_Done]:
    """Calls the compiled steps, each call about as long as `_SECONDS`, under a bar; yields what is done."""
    taken, length, take = int(done.state.taken), 1, compiled_steps(job)
    with _Bar(job.name, taken, done.stop, progress) as bar:
        while taken < done.stop and done.state.cause == 0:
            began = time.perf_counter()
            state, estimates = take(key, done.state, args, min(taken + length, done.stop))
            tried = int(state.taken) - taken + int(state.cause != 0)
            estimates = np.asarray(estimates)[:tried]
            done = done._replace(state=state, estimates=(*done.estimates, estimates))
            yield done
            bar.move(int(state.taken) - taken, np.mean(estimates))
            taken = int(state.taken)
            seconds = max(time.perf_counter() - began, 1e-6)
            length = max(1, min(8 * length, MOST, int(length * _SECONDS / seconds)))


class _Bar:
    """A progress bar without which a fit goes on where it fails."""

    def __init__(self, name: str, initial: int, total: int, progress: bool):
        """Opens it, if there is to be one."""
        self.bar = None
        if progress:
            self._safely(self._open, name, initial, total)

    def _open(self, name: str, initial: int, total: int) -> None:
        self.bar = tqdm(initial=initial, total=total, desc=name, dynamic_ncols=True)

    def move(self, steps: int, mean: np.floating) -> None:
        """Moves it, and shows the mean of the latest estimates."""
        if self.bar is not None:
            self._safely(self._move, steps, mean)

    def _move(self, steps: int, mean: np.floating) -> None:
        self.bar.set_postfix_str(f"{mean:.4f}", refresh=False)  # type: ignore[union-attr]
        self.bar.update(steps)  # type: ignore[union-attr]

    def _safely(self, call: Callable[..., None], *args: object) -> None:
        try:
            call(*args)
        except Exception as error:
            self.bar = None
            _warn(f"vipl.fit goes on without its progress bar, which failed: {type(error).__name__}: {error}")

    def __enter__(self) -> _Bar:
        """The bar."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes it."""
        if self.bar is not None:
            self._safely(self.bar.close)


def _strong(x: ArrayLike) -> Array:
    """An array that does not change its type when it is updated: a Python number has a weak one."""
    x = jnp.asarray(x)
    return lax.convert_element_type(x, x.dtype) if x.weak_type else x


def _warn(text: str) -> None:
    """Warns at the line that calls `vipl.fit`."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename == __file__:
        frame, level = frame.f_back, level + 1
    warnings.warn(text, RuntimeWarning, stacklevel=level)


def _site_of_number(job: Job, key: PRNGKeyArray, done: _Done, args: tuple[PyTree, ...]) -> str | None:
    """Names the site that a number that is not finite comes from; None where it is not found."""
    try:
        return what_is_not_finite(job, key, done.state, args)
    except Exception:  # the fit is not lost for it
        return None


def _warn_of_number(job: Job, done: _Done, site: str | None) -> None:
    _warn(
        f"vipl.fit stopped at step {done.state.taken} of {done.stop} of {job.name}: {CAUSES[int(done.state.cause)]} is "
        f"not finite (the estimate there is {done.estimates[-1][-1]}). {site + ' ' if site else ''}The parameters are "
        f"those before the step; `values` is NaN after it."
    )
