"""`fit`: stochastic gradient ascent on an objective.

    params_{t+1} = params_t + update(optimizer, ∇̂L(params_t, batch_t)),

with ∇̂L the derivative of `objective.estimate`, and the update's sign that of ascent or descent.

Invariants:

- What step t does depends on the key, on t, and on the parameters before it; not on how many steps are taken, or taken
  together, nor on the progress bar. So n steps and then m more are n + m steps, bit for bit.
- Whatever ends a fit, the steps that were taken are not lost.
- What is not a float array is never changed by an optimizer.

Not here: stopping rules (they are the callback's), schedules (they are the optimizer's).
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm.auto import tqdm

from vipl import _settings
from vipl._checks import check_known, whole_number
from vipl._settings import with_own_settings
from vipl._types import Array, ArrayLike, PRNGKeyArray, PyTree, Shaped
from vipl.expectation import Expectation
from vipl.fit._begin import (
    all_starts,
    best_of,
    directions,
    fraction,
    keys_of,
    named,
    owners_by,
    starts,
    strong,
    turns_of,
)
from vipl.fit._check import (
    as_arrays,
    check_batches,
    check_between,
    check_folder,
    check_has_aux,
    check_resume,
    check_stream,
)
from vipl.fit._checkpoint import Checkpoints
from vipl.fit._data import Feed, Fixed, Stream, is_stream
from vipl.fit._history import Parts, appended, joined, means, recorded
from vipl.fit._parts import own
from vipl.fit._steps import (
    CAUSES,
    MOST,
    STOPPED_BEFORE,
    Job,
    State,
    compiled_steps,
    kind_of_cause,
    number_of_cause,
    rows_that_count_once,
    steps_before,
    what_is_not_finite,
)
from vipl.fit._watch import Watch
from vipl.ir.keys import as_key

# The bar moves, and an interrupt is noticed, about this often.
_SECONDS = 0.25


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Fit:
    """What `fit` returns.

    With several objectives, `opt_state`, `values`, `gradient_norms`, `learning_rates` and `metrics` are dicts by their
    names; an objective with k > 1 turns in a step has an axis of k after that of the steps.

    Attributes:
      params: …, after the last step taken.
      opt_state: …, the optimizer's state, after the last step taken.
      values: f[n], the objective's estimate before each step, those of a fit that was continued included; NaN after
        `stopped`.
      stopped: i[], steps taken in all; below n only if a value, a gradient or an update was not finite, if the fit was
        interrupted or ended by its callback, or if the data had no more batches.
      key: u32[...], the bits of the key.
      impl: the name of the key's generator.
      batches: how many rows the data have, and how many a batch; None without batches.
      gradient_norms: f[n], the Euclidean norm of the gradient in each step.
      learning_rates: f[n], the learning rate of each step, where the optimizer has an optax.inject_hyperparams of a
        "learning_rate" (the first, if there are several); else None.
      metrics: …[n, ...], the auxiliary output of the objective in each step, as `estimate` returns it, of keys
        their data; after `stopped` NaN, or 0 where it is not a float. None without `has_aux`.
      averaged: …, the average of the parameters; None without `average`.
      state: …, the state that the objective returned in the last step; None without `state`.
      restarts: the fits from all starts, as one `Fit` whose arrays have a leading axis of them; None without
        `num_restarts`.
    """

    params: PyTree
    opt_state: PyTree
    values: PyTree
    stopped: Array | np.ndarray | int
    key: Shaped[Array, "..."]
    impl: str = field(metadata={"static": True})
    batches: tuple[int, int] | None = field(metadata={"static": True})
    gradient_norms: PyTree = None
    learning_rates: PyTree = None
    metrics: PyTree = None
    averaged: PyTree = None
    state: PyTree = None
    restarts: Fit | None = None


_OUTSIDE = (
    "call it outside, with num_restarts= for several starts; inside, take steps of an optimizer with "
    "objective.value_and_grad in a jax.lax.scan"
)


@with_own_settings
def fit(
    objective: Expectation | Mapping[str, Expectation],
    params: PyTree,
    optimizer: optax.GradientTransformation | Mapping[str, optax.GradientTransformation],
    *,
    key: PRNGKeyArray,
    data: PyTree = None,
    num_steps: SupportsIndex,
    batch_size: SupportsIndex | None = None,
    num_samples: SupportsIndex = 1,
    maximize: bool | Mapping[str, bool] = True,
    progress: bool = True,
    resume: Fit | None = None,
    state: PyTree = None,
    average: float | None = None,
    num_restarts: SupportsIndex | None = None,
    labels: PyTree = None,
    turns: Mapping[str, SupportsIndex] | None = None,
    callback: Callable[[Fit], object] | None = None,
    callback_every: SupportsIndex | datetime.timedelta | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: float = 60.0,
) -> Fit:
    """Maximizes an objective over its first argument by stochastic gradients.

    max over params of L(params, data) = E[objective(params, data)];  with `batch_size`, of the mean of
    L(params, batch) over the batches of an epoch.

    The steps are compiled once, for any number of them. Step t uses the key folded with t, so that results depend
    neither on how many steps run together nor on `progress`, and n steps and then m more are n + m steps, bit for bit.

    Several objectives, each with an optimizer and parameters of its own, are dicts by the same names, and `labels` say
    whose each parameter is, as in optax.multi_transform. In a step each updates its parameters once, all from the
    parameters before the step; or, with `turns`, one after the other. Each has a key of its own, by its name.

    Args:
      objective: made by `vipl.expectation`; called as `objective(params)`, or as `objective(params, data)` if there is
        data; with `state` as `objective(params, state)` or `objective(params, state, data)`. Its auxiliary output is
        kept as `metrics`. Several are a dict.
      params: …, a pytree of arrays, where to begin. Float arrays are optimized; integers, booleans and keys stay what
        they are. A function gets a key, and returns them. With `resume` their values are not looked at, and None will
        do.
      optimizer: an optax optimizer, as for minimization. Its `update` gets `value`, `grad` and `value_fn`, as
        optax.lbfgs needs them: those of the loss, with the draws of the step. Several are a dict.
      key: PRNG key.
      data: …, a pytree of arrays; None calls the objective without it. Or batches to be read, one for each step: an
        iterator; an iterable, which is gone through again and again; or a function from the number of the first step
        to one of the two. A few batches are read ahead. A batch with another number of rows is compiled for once more.
      num_steps: how many steps to take; with `resume`, how many more.
      batch_size: None gives the objective all data at every step. A number gives it that many rows: the arrays of
        `data` then share their leading axis, each epoch is a fresh pseudorandom permutation, and its last incomplete
        batch is dropped. The objective scales its terms, if it should estimate that of all data. At most 2^31 - 1 rows.
      num_samples: how many independent runs each estimate averages.
      maximize: False minimizes. Of several objectives also a dict.
      progress: whether to show a progress bar with the mean of the latest estimates.
      resume: a fit to go on from: its parameters, optimizer's state, place in the epoch and number of the step. It has
        to have the same key, batches, and kinds of parameters and optimizer's state. A fit that was interrupted goes
        on; one that stopped at a number that is not finite tries that step again. An iterator is passed from its
        beginning: the batches of the steps that were taken are read and passed over.
      state: …, a pytree of arrays that steps hand on, as batch statistics. The objective has `has_aux`, and returns
        `(value, new_state)` or `(value, (new_state, metrics))`. With `num_samples > 1` the new state's floats are the
        mean over the samples; what is not a float is that of the first sample. Several objectives hand it on in their
        order; one without `has_aux` leaves it as it is.
      average: a number in (0, 1]: `averaged` is the average of the iterates over about this last fraction of the steps,
        a_t = a_{t-1} + min(1, 1 / (average t)) (params_t - a_{t-1}): iterate s has a weight of about s^(1/average - 1).
        1 is the mean of all iterates.
      num_restarts: how many starts are fitted together, each with a key of its own. `params` that are a function are
        drawn for each; others are the same for all. The fit is that of the start whose last tenth of estimates has the
        best mean, `restarts` has all. A start that stops at a number that is not finite takes no part from there on.
      labels: …, for several objectives, a prefix of `params` whose leaves are their names, or a function that makes it
        of `params`; None where `params` are a dict with the objectives' names.
      turns: how many updates each of several objectives makes in a step, a dict; they take turns in the order of
        `objective`, each at the parameters that those before it have left. None updates all together.
      callback: called with the fit so far; a true value that it returns ends the fit.
      callback_every: after how many steps, counted from the first of all, or after what `datetime.timedelta` the
        callback is called; None calls it about every second.
      checkpoint: a folder, in which the fit is kept by Orbax. The same call made again goes on from there, up to
        `num_steps` in all, and ends where it would have ended, bit for bit.
      checkpoint_every: about after how many seconds a checkpoint is written; one is written at the end, too.

    With `batch_size`, a RuntimeWarning says where the rows of a batch count as often as what all rows share, so that
    n / b is forgotten; it looks at programs whose sites of rows are vectors or lanes, once, as the fit begins.

    Returns:
      A `Fit`. Where the value, the gradient or the update is not finite, nothing is replaced: a RuntimeWarning names
      the step and, where it is found, the site; `params` stay those before it. An interrupt (Ctrl-C) ends the fit with
      a RuntimeWarning, and the fit so far is returned; a second one while that is made raises. Data that end before
      the last step end it with a RuntimeWarning, too.

    Raises:
      ProgramError: an argument does not fit; the message says which. It is called inside a transformation of JAX.
      Exception: what the objective, the data or a callback raises while steps are taken; its attribute `fit` is the fit
        so far.

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
    objectives, optimizers, names = named(objective, optimizer)
    num_steps = whole_number(num_steps, "num_steps", "vipl.fit")
    num_samples = whole_number(num_samples, "num_samples", "vipl.fit")
    if num_restarts is not None:
        num_restarts = whole_number(num_restarts, "num_restarts", "vipl.fit")
    streamed, batches, key = is_stream(data), None, as_key(key)
    if streamed:
        check_stream(batch_size)
    else:
        data = as_arrays(data, "data")
    check_known((key, params, None if streamed else data, state), "vipl.fit", _OUTSIDE)
    if batch_size is not None:
        batch_size = whole_number(batch_size, "batch_size", "vipl.fit")
        check_batches(data, batch_size)
        batches = (jax.tree.leaves(data)[0].shape[0], batch_size)
    check_between(callback, checkpoint_every)
    if checkpoint is not None:
        check_folder(checkpoint)
    watch = Watch(callback, callback_every)
    if resume is not None:
        resume = all_starts(resume, num_restarts, Fit)
    job = Job(
        objectives=objectives,
        optimizers=optimizers,
        batch_size=batch_size,
        num_samples=num_samples,
        maximize=directions(maximize, names),
        names=names,
        turns=turns_of(turns, names),
        has_state=state is not None or (resume is not None and resume.state is not None),
        average=fraction(average),
        num_restarts=num_restarts,
        room=1 if streamed else MOST,
    )
    check_has_aux(job.has_state, objectives)
    params, state = starts(job, key, params, state, resume)
    job = job._replace(owners=owners_by(job, params, labels))
    begun = _begin(job, key, params, state, batches)
    if resume is not None:
        check_resume(resume, begun)
        begun = resume
    stop = _most(begun.stopped) + num_steps
    feed = Stream(data) if streamed else Fixed(data)
    store = None if checkpoint is None else Checkpoints(checkpoint, checkpoint_every)
    if store is not None:
        begun = store.restored(job, key, begun, _state_of(begun), feed, stop)
    taken = _most(begun.stopped)
    feed.begin(taken)
    _warn_of_rows(job, key, begun, data)
    done = _Done(job, begun, _state_of(begun), recorded(job, vars(begun), taken), stop)
    if store is None:
        return _run(key, done, feed, watch, None, progress)
    with contextlib.closing(store):
        return _run(key, done, feed, watch, store, progress)


def _warn_of_rows(job: Job, key: PRNGKeyArray, begun: Fit, data: PyTree) -> None:
    """Warns where the rows of a batch count once, and stand for more rows of the data; as a fit begins."""
    n, b = begun.batches or (0, 0)
    begins = b < n and _most(begun.stopped) == 0
    found = rows_that_count_once(job, key, begun.params, begun.state, data) if begins else None
    if found is not None:
        rows, shared = found
        _warn(
            f"vipl.fit: each of the {b} rows of a batch counts once at {rows}, as does {shared}, which all {n} rows "
            f"share: {b} rows then stand for themselves alone, and the posterior is that of {b} rows. Write "
            f"vipl.scaled(source, n / b) at the site of the rows, here n / b = {n / b:.6g}."
        )


def _begin(job: Job, key: PRNGKeyArray, params: PyTree, state: PyTree, batches: tuple[int, int] | None) -> Fit:
    """A fit of no steps; with several starts, its arrays have a leading axis of them."""

    def opt_states(params):
        return job.by_name([optimizer.init(own(job.owners, params, n)) for n, optimizer in enumerate(job.optimizers)])

    opt_state = jax.tree.map(strong, (opt_states if job.num_restarts is None else jax.vmap(opt_states))(params))
    stopped = 0 if job.num_restarts is None else np.zeros(job.num_restarts, np.int32)
    bits, impl = jax.random.key_data(key), str(jax.random.key_impl(key))
    averaged = None if job.average is None else params
    return Fit(params, opt_state, (), stopped, bits, impl, batches, averaged=averaged, state=state)


def _state_of(fit: Fit) -> State:
    """The state from which a fit goes on; a start that had stopped takes no more part."""
    params, opt_state, model, averaged = jax.tree.map(strong, (fit.params, fit.opt_state, fit.state, fit.averaged))
    taken = np.asarray(fit.stopped, np.int32)
    cause = np.where(taken < _most(taken), STOPPED_BEFORE, 0).astype(np.int32)
    return State(params, opt_state, jnp.asarray(taken), jnp.asarray(cause), model, averaged)


def _most(stopped: ArrayLike) -> int:
    """Steps taken, by the start that has taken the most."""
    return int(np.max(np.asarray(stopped)))


class _Done(NamedTuple):
    """What is done of a fit.

    Attributes:
      job: what is run.
      begun: the fit that is continued; one of no steps where there is none.
      state: after the last call that has returned.
      history: of each step that was tried, in parts.
      stop: how many steps there are to be in all.
      is_short: whether the data had no more batches.
    """

    job: Job
    begun: Fit
    state: State
    history: Parts
    stop: int
    is_short: bool = False

    @property
    def taken(self) -> int:
        """Steps taken."""
        return _most(self.state.taken)

    @property
    def goes_on(self) -> bool:
        """Whether there are steps to take: a start has stopped at no number that is not finite."""
        return self.taken < self.stop and not self.is_short and bool(np.any(np.asarray(self.state.cause) == 0))

    def as_fit(self) -> Fit:
        """The fit so far; of several starts the best."""
        whole = self.all_starts()
        return whole if self.job.num_restarts is None else best_of(self.job, whole)

    def all_starts(self) -> Fit:
        """The fit so far, with all starts."""
        state = self.state
        return replace(
            self.begun,
            params=state.params,
            opt_state=state.opt_state,
            stopped=state.taken,
            averaged=state.averaged,
            state=state.model,
            restarts=None,
            **joined(self.job, self.history, self.stop),
        )


def _run(key: PRNGKeyArray, done: _Done, feed: Feed, watch: Watch, store: Checkpoints | None, progress: bool) -> Fit:
    """Takes the steps; whatever ends them, what is done is returned, or handed on with the exception.

    What is done changes by one assignment, so that an interrupt at any moment finds all of it of one step.
    """
    job = done.job
    try:
        for done in _calls(key, done, feed, watch, progress):  # noqa: B020
            if store is not None:
                store.save_if_due(done.state, done.history, done.taken)
            if watch.ends(done.taken, done.as_fit):
                break
        if store is not None:
            store.save(done.state, done.history, done.taken)
        if done.is_short:
            _warn(
                f"vipl.fit ended after {done.taken} of {done.stop} steps of {job.name()}: the data have no more "
                "batches. The fit so far is returned: its `values` are NaN after these."
            )
        if np.any(np.asarray(done.state.cause) > 0):
            _warn_of_number(done, _site_of_number(key, done, feed))
        return done.as_fit()
    except KeyboardInterrupt:
        if store is not None:
            store.save(done.state, done.history, done.taken)
        _warn(
            f"vipl.fit was interrupted after {done.taken} of {done.stop} steps of {job.name()}. The fit so far is "
            "returned: its `values` are NaN after these, and vipl.fit(..., resume=fit) goes on."
        )
        return done.as_fit()
    except Exception as error:
        if done.taken > _most(done.begun.stopped):
            error.fit = done.as_fit()  # type: ignore[attr-defined]
            error.add_note(
                f"vipl.fit: {done.taken} steps were taken before. The fit so far is this exception's attribute "
                "`fit`, and vipl.fit(..., resume=error.fit) goes on."
            )
        raise


def _calls(key: PRNGKeyArray, done: _Done, feed: Feed, watch: Watch, progress: bool) -> Iterator[_Done]:
    """Calls the compiled steps, each call about as long as `_SECONDS`, under a bar; yields what is done."""
    job = done.job
    taken, length, take, keys = done.taken, 1, compiled_steps(job), keys_of(job, key)
    with _Bar(job.name(), taken, done.stop, progress) as bar:
        while done.goes_on:
            began = time.perf_counter()
            args = feed.next()
            if args is None:
                yield done._replace(is_short=True)
                return
            state, history = take(keys, done.state, args, watch.limit(taken, min(taken + length, done.stop)))
            check_known(state, "vipl.fit", _OUTSIDE)  # what the objective closes over may be traced
            feed.read_ahead()
            if job.num_restarts is None and int(state.cause) > 0:
                state = steps_before(take, keys, done.state, args, state)
            tried = _most(state.taken) - taken + int(np.all(np.asarray(state.cause) != 0))
            history = jax.tree.map(lambda x: np.array(np.asarray(x)[:tried]), history)  # noqa: B023
            done = done._replace(state=state, history=appended(done.history, history))
            yield done
            bar.move(done.taken - taken, means(job, history))
            taken = done.taken
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

    def move(self, steps: int, text: str) -> None:
        """Moves it, and shows the mean of the latest estimates."""
        if self.bar is not None:
            self._safely(self._move, steps, text)

    def _move(self, steps: int, text: str) -> None:
        self.bar.set_postfix_str(text, refresh=False)  # type: ignore[union-attr]
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


def _warn(text: str) -> None:
    """Warns at the line that calls `vipl.fit`."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename in (__file__, _settings.__file__):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, RuntimeWarning, stacklevel=level)


def _site_of_number(key: PRNGKeyArray, done: _Done, feed: Feed) -> str | None:
    """Names the site that a number that is not finite comes from; None where it is not found."""
    job, state = done.job, done.state
    if job.num_restarts is not None:
        first = _first_to_stop(state)
        if isinstance(feed, Stream) and int(state.taken[first]) < done.taken:  # its batch is gone
            return None
        state, key = jax.tree.map(lambda x: x[first], (state, keys_of(job, key)))
    try:
        return what_is_not_finite(job, key, state, feed.args)
    except Exception:  # the fit is not lost for it
        return None


def _first_to_stop(state: State) -> int:
    """The start that stopped first at a number that is not finite, of those that have in this call."""
    return int(np.argmin(np.where(np.asarray(state.cause) > 0, np.asarray(state.taken), np.iinfo(np.int32).max)))


def _warn_of_number(done: _Done, site: str | None) -> None:
    job, state, site = done.job, done.state, f"{site} " if site else ""
    if job.num_restarts is not None:
        first, count = _first_to_stop(state), int(np.sum(state.cause > 0))
        what = CAUSES[kind_of_cause(state.cause[first])]
        _warn(
            f"vipl.fit: {count} of {job.num_restarts} starts of {job.name()} stopped, the first at step "
            f"{int(state.taken[first])} of {done.stop}: {what} is not finite. {site}Their parameters are those before "
            "the step; their `values` are NaN after it."
        )
        return
    number = number_of_cause(state.cause)
    estimate = np.ravel(job.in_order(done.history[-1])[number].values[-1])[-1]
    _warn(
        f"vipl.fit stopped at step {state.taken} of {done.stop} of {job.name(number)}: "
        f"{CAUSES[kind_of_cause(state.cause)]} is not finite (the estimate there is {estimate}). {site}The parameters "
        f"are those before the step; `values` is NaN after it."
    )
