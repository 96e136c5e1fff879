"""A fit in a folder, by Orbax: a process that is killed at any moment goes on from what was written last.

Law: a call with `checkpoint=folder`, killed any number of times and made again, ends bit for bit where it would have
ended without. What is half written is never read: Orbax writes a folder of another name, and renames it at the end.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vipl._types import Array, PRNGKeyArray, PyTree
from vipl.errors import show_aval
from vipl.fit._begin import keys_of
from vipl.fit._check import check_checkpoint, check_checkpoint_steps
from vipl.fit._data import Feed
from vipl.fit._history import Parts, joined
from vipl.fit._steps import Job, State, record_kinds
from vipl.ir.keys import is_key

_KEPT = 2
"""How many checkpoints a folder holds."""


class Checkpoints:
    """Those of one call.

    Attributes:
      every: about every how many seconds one is written.
      about: what a fit has to share with a checkpoint that it goes on from, in words.
    """

    def __init__(self, folder: str | os.PathLike[str], every: float):
        """Opens the folder, and removes what was half written."""
        from orbax import checkpoint as ocp

        self.ocp, self.every = ocp, every
        self.about: dict[str, list[str]] = {}
        options = ocp.CheckpointManagerOptions(max_to_keep=_KEPT, enable_async_checkpointing=False)
        self.manager = ocp.CheckpointManager(os.path.abspath(folder), options=options)
        self.latest = self.manager.latest_step()
        self.last = time.monotonic()

    def restored(self, job: Job, key: PRNGKeyArray, begun: Any, state: State, feed: Feed, stop: int) -> Any:
        """The fit of the latest checkpoint; `begun` where there is none.

        Args:
          job: …
          key: of the fit.
          begun: the fit that the call would begin, or go on from.
          state: …, from which it would.
          feed: …, what the objective gets.
          stop: how many steps the call asks for.

        Raises:
          ProgramError: the checkpoint is of another fit, or of one that has taken more steps.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            args = feed.example()
            records = record_kinds(job, keys_of(job, key), state, args)
            self.about = _about(job, begun, records, _digest(job, key, state, args))
            found = begun if self.latest is None else self._read(job, begun, records, self.latest, stop)
            stack.pop_all()
        return found

    def _read(self, job: Job, begun: Any, records: PyTree, taken: int, stop: int) -> Any:
        items: Any = self.manager.restore(taken, args=self.ocp.args.Composite(about=self.ocp.args.JsonRestore()))
        check_checkpoint(self.about, items.about)
        check_checkpoint_steps(taken, stop)
        history = jax.tree.map(lambda x: jax.ShapeDtypeStruct((taken, *x.shape), x.dtype), records)
        leaves, treedef = jax.tree.flatten((*_carried(begun), begun.stopped, history))
        found = self._arrays(taken, [str(n) for n, leaf in enumerate(leaves) if np.size(leaf)])
        arrays = [_like(leaf, found.get(str(n))) for n, leaf in enumerate(leaves)]
        params, opt_state, model, averaged, stopped, history = treedef.unflatten(arrays)
        return replace(
            begun,
            params=params,
            opt_state=opt_state,
            state=model,
            averaged=averaged,
            stopped=stopped,
            **joined(job, (history,), taken),
        )

    def _arrays(self, taken: int, names: list[str]) -> dict[str, np.ndarray]:
        """The arrays of a checkpoint; those without elements are not written."""
        as_numpy = {name: self.ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
        wanted = self.ocp.args.PyTreeRestore(restore_args=as_numpy)
        items: Any = self.manager.restore(taken, args=self.ocp.args.Composite(arrays=wanted))
        return items.arrays

    def save_if_due(self, fit_state: State, history: Parts, taken: int) -> None:
        """Writes a checkpoint if it is time."""
        if time.monotonic() - self.last >= self.every:
            self.save(fit_state, history, taken)

    def save(self, state: State, history: Parts, taken: int) -> None:
        """Writes a checkpoint, unless there is one of this step."""
        if taken == self.latest or taken == 0:
            return
        whole = jax.tree.map(lambda *xs: np.concatenate(xs)[:taken], *history)
        tree = (state.params, state.opt_state, state.model, state.averaged, state.taken, whole)
        leaves = [np.asarray(jax.random.key_data(x) if is_key(x) else x) for x in jax.tree.leaves(tree)]
        arrays = {str(n): x for n, x in enumerate(leaves) if x.size}
        args_of = self.ocp.args
        args = args_of.Composite(arrays=args_of.PyTreeSave(arrays), about=args_of.JsonSave(self.about))
        self.manager.save(taken, args=args)
        self.latest, self.last = taken, time.monotonic()

    def close(self) -> None:
        """Closes the folder."""
        self.manager.close()


def _like(leaf: Any, read: np.ndarray | None) -> Array | np.ndarray:
    """An array as it was before it was written, by one of its kind."""
    if is_key(leaf):
        return jax.random.wrap_key_data(jnp.asarray(read), impl=jax.random.key_impl(leaf))
    return np.zeros(jnp.shape(leaf), leaf.dtype) if read is None else read


def _carried(fit: Any) -> tuple[PyTree, ...]:
    return fit.params, fit.opt_state, fit.state, fit.averaged


def _about(job: Job, begun: Any, records: PyTree, digest: str) -> dict[str, list[str]]:
    """What has to be equal for a fit to go on, in words."""

    def kinds(name, tree):
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return [f"{show_aval(x)} at {name}{jax.tree_util.keystr(path)}" for path, x in leaves]

    return {
        "objective": [job.name()],
        "options": [f"num_samples={job.num_samples}", f"maximize={job.maximize}", f"turns={job.turns}"],
        "program": [digest],
        "key": [f"the {begun.impl} key {np.asarray(begun.key).tolist()}"],
        "batches": [
            "no batches" if begun.batches is None else f"batch_size={begun.batches[1]} of {begun.batches[0]} rows"
        ],
        "restarts": [f"num_restarts={job.num_restarts}"],
        "params": kinds("params", begun.params),
        "opt_state": kinds("opt_state", begun.opt_state),
        "state": kinds("state", begun.state),
        "averaged": kinds("averaged", begun.averaged) and [f"average={job.average}"],
        "history": kinds("history", records),
    }


def _digest(job: Job, key: PRNGKeyArray, state: State, args: tuple[PyTree, ...]) -> str:
    """Of the objectives' programs, as JAX traces them, with the arrays that they close over."""
    if job.num_restarts is not None:
        state = jax.tree.map(lambda x: x[0], state)
    batch = args if job.batch_size is None else jax.tree.map(lambda x: x[: job.batch_size], args)
    args = (state.params, *([state.model] if job.has_state else []), *batch)
    found = hashlib.blake2b(repr((job.maximize, job.turns)).encode(), digest_size=8)
    for objective in job.objectives:
        estimate = lambda key, *args: objective.estimate_anew(key, *args, num_samples=job.num_samples)  # noqa: B023, E731
        traced = jax.make_jaxpr(estimate)(key, *args)
        found.update(re.sub("0x[0-9a-f]+", "", str(traced)).encode())
        for const in traced.consts:
            found.update(np.asarray(jax.random.key_data(const) if is_key(const) else const).tobytes())
    return found.hexdigest()
