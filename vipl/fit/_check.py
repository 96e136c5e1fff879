"""What `fit` refuses, with the four lines."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vipl._types import PyTree
from vipl.errors import ChoiceError, ProgramError, shortened, show_aval
from vipl.expectation import Expectation
from vipl.fit._order import MOST_ROWS
from vipl.ir.partition import canonical


def _error(summary: str, got: str, expected: str, fix: str, at: str = "vipl.fit") -> ProgramError:
    return ProgramError(summary, at=at, got=got, expected=expected, fix=fix)


def check_arguments(objective: object, optimizer: Any) -> None:
    """Raises where these are not what `fit` takes."""
    if not isinstance(objective, Expectation):
        raise _error(
            "the objective is not an expectation.",
            type(objective).__name__,
            "what vipl.expectation returns",
            "decorate the function with @vipl.expectation",
        )
    check_optimizer(optimizer)


def check_optimizer(optimizer: Any, at: str = "vipl.fit") -> None:
    """Raises where it is none of optax's."""
    name = type(optimizer).__name__
    if type(optimizer).__module__.startswith("numpyro"):
        raise _error(
            "the optimizer is one of NumPyro's.",
            f"numpyro.optim.{name}",
            "an optax optimizer",
            f"pass optax.{name.lower()}(step_size)" if hasattr(optax, name.lower()) else "pass e.g. optax.adam(1e-2)",
            at,
        )
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")) or isinstance(optimizer, type):
        is_factory = callable(optimizer) and getattr(optimizer, "__name__", "") in vars(optax)
        raise _error(
            "the optimizer is not an optax optimizer.",
            f"the function optax.{optimizer.__name__} itself" if is_factory else name,
            "an object with `init` and `update`",
            f"call it: optax.{optimizer.__name__}(1e-2)" if is_factory else "pass e.g. optax.adam(1e-2)",
            at,
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
            arrays.append(jnp.asarray(canonical(leaf if number else np.asanyarray(leaf))))
        except ChoiceError as error:
            raise error.located(f"{what}{jax.tree_util.keystr(path)} of vipl.fit") from None
        except (TypeError, ValueError):
            raise _error(
                f"the {what} are not arrays.",
                f"{show_aval(leaf)} at {what}{jax.tree_util.keystr(path)}",
                "a pytree of arrays and numbers",
                "convert it to numbers; close over what is not an array",
            ) from None
    return jax.tree.unflatten(treedef, arrays)


def check_params(params: PyTree) -> None:
    """Raises where no leaf of the parameters is a float array, or one is complex."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if complex_ := [(path, x) for path, x in leaves if jnp.issubdtype(x.dtype, jnp.complexfloating)]:
        raise _error(
            "a parameter is complex.",
            _listed("params", complex_),
            "float arrays; integers, booleans and keys stay what they are",
            "pass the real and the imaginary part, and put them together in the objective",
        )
    if not any(jnp.issubdtype(x.dtype, jnp.floating) for _, x in leaves):
        raise _error(
            "the parameters are not float arrays.",
            _listed("params", leaves),
            "a pytree with at least one float array, which is optimized; what is not a float stays what it is",
            "write 0.0 for 0"
            if leaves
            else 'pass the parameters, as in vipl.fit(objective, {"loc": jnp.zeros(3)}, ...)',
        )


def _listed(name: str, leaves: PyTree) -> str:
    shown = ", ".join(f"{show_aval(x)} at {name}{jax.tree_util.keystr(path)}" for path, x in leaves[:3])
    return (shown + (f", and {len(leaves) - 3} more" if len(leaves) > 3 else "")) or "no arrays"


def check_new_state(name: str, before: PyTree, after: PyTree) -> None:
    """Raises where the state that an objective returns is not of the kind of the one that it got."""
    if _kinds(before) != _kinds(after):
        got, expected = _first_difference("state", after, before)
        raise ProgramError(
            "the state that an objective returns is not of the kind of the state that it gets.",
            at=f"vipl.fit of {name}",
            got=got,
            expected=expected,
            fix="return `(value, new_state)`, or `(value, (new_state, metrics))`, the new state like the old one",
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
    if rows > MOST_ROWS:
        raise _error(
            "the data have more rows than batches can be drawn of.",
            shown,
            f"at most {MOST_ROWS} rows",
            "pass an iterable of batches as data, and leave batch_size out",
        )


def check_names(what: str, wanted: object, other: str, found: object) -> None:
    """Raises where two things of a fit with several objectives do not have the same names."""
    names = [sorted(map(repr, x)) if isinstance(x, Mapping) else None for x in (wanted, found)]
    if not names[0] or names[0] != names[1]:
        shown = [", ".join(x) or "none" if x is not None else "no dict" for x in names]
        raise _error(
            f"the {what} and the {other} do not have the same names.",
            f"{what} {shown[0]}; {other} {shown[1]}",
            "a dict for each, with the same names",
            'pass e.g. {"wake": ..., "sleep": ...} for both',
        )


def labels_like(names: Sequence[str], params: PyTree, labels: PyTree) -> PyTree:
    """The number of the objective of each leaf of the parameters; raises where the labels do not say it.

    Args:
      names: the objectives' names.
      params: …
      labels: …, a prefix of `params` with names as its leaves; None where the names are those of `params`, a dict.
    """
    if labels is None and isinstance(params, dict) and set(params) == set(names):
        labels = {name: name for name in names}
    try:
        each = jax.tree.map(lambda label, part: jax.tree.map(lambda _: names.index(label), part), labels, params)
        if jax.tree.structure(each) == jax.tree.structure(params):
            return each
    except ValueError:  # not a prefix, or not a name
        pass
    raise _error(
        "the labels do not say which objective moves which parameters.",
        f"labels={shortened(labels)}",
        f"{', '.join(map(repr, names))} at each parameter, or at a part of them",
        'pass labels={"theta": "wake", "phi": "sleep"}, for parameters that are a dict of "theta" and "phi"',
    )


def check_no_labels(labels: PyTree) -> None:
    """Raises where there are labels, and one objective without a name."""
    if labels is not None:
        raise _error(
            "there are labels, and one objective without a name.",
            f"labels={shortened(labels)}",
            "labels for several objectives, which are a dict",
            'pass e.g. {"wake": ..., "sleep": ...} as objective and as optimizer; or leave labels out',
        )


def check_owned(names: Sequence[str], owners: Sequence[int]) -> None:
    """Raises where an objective has no parameters."""
    if without := [name for number, name in enumerate(names) if number not in owners]:
        raise _error(
            "an objective has no parameters that are float arrays.",
            ", ".join(map(repr, without)),
            "a label of each objective at a float array",
            "label its parameters in `labels`, or leave it out",
        )


def check_fraction(average: object) -> None:
    """Raises where a number is not a fraction."""
    if isinstance(average, bool) or not isinstance(average, (int, float)) or not 0 < average <= 1:
        raise _error(
            "average is not a fraction of the steps.",
            f"average={shortened(average)}",
            "a number above 0, and at most 1",
            "pass average=0.25 for about the last quarter of the iterates",
        )


def check_restarts(found: int | None, wanted: int | None) -> None:
    """Raises where a fit of some number of starts is continued as one of another number."""
    if found != wanted:
        raise _error(
            "the number of starts is not that of the fit that is continued.",
            f"num_restarts={wanted}",
            f"num_restarts={found}",
            "pass the first fit's num_restarts; or begin a fit at its `params`, the best start's",
        )


def check_direction(maximize: object) -> bool:
    """Whether an objective is maximized; raises where that is not True or False."""
    if isinstance(maximize, jax.Array) and maximize.shape == () and maximize.dtype == bool:
        return bool(maximize)
    if not isinstance(maximize, (bool, np.bool_)):
        raise _error(
            "maximize is not True or False.", shortened(maximize), "True, or False to minimize", "pass maximize=False"
        )
    return bool(maximize)


def check_between(callback: object, checkpoint_every: object) -> None:
    """Raises where what is to be done between steps is not a function, or not at a time."""
    if callback is not None and not callable(callback):
        raise _error(
            "the callback is not a function.",
            type(callback).__name__,
            "a function of the fit so far",
            "pass callback=lambda fit: print(fit.stopped)",
        )
    if isinstance(checkpoint_every, bool) or not isinstance(checkpoint_every, (int, float)) or checkpoint_every < 0:
        raise _error(
            "checkpoint_every is not a number of seconds.",
            shortened(checkpoint_every),
            "a number, at least 0",
            "pass checkpoint_every=60",
        )


def check_has_aux(has_state: bool, objectives: Sequence[Expectation]) -> None:
    """Raises where there is a state, and no objective returns one."""
    if has_state and not any(objective.has_aux for objective in objectives):
        raise _error(
            "there is a state, and the objective returns none.",
            "an objective without auxiliary output",
            "an objective that returns `(value, new_state)`",
            "decorate it with @vipl.expectation(has_aux=True), and return the new state",
        )


def check_batch(batch: PyTree, first: PyTree) -> None:
    """Raises where a batch of a stream has other arrays than the first one; the numbers of rows may differ."""
    kinds = [
        (jax.tree.structure(tree), [(x.dtype, x.shape[1:]) for x in jax.tree.leaves(tree)]) for tree in (batch, first)
    ]
    if kinds[0] != kinds[1]:
        got, expected = _first_difference("data", batch, first)
        raise _error(
            "a batch is not of the kind of the first one.",
            got,
            f"{expected}, as the first batch has it; the number of rows may be another",
            "give all batches the same structure, dtypes and trailing axes",
        )


def check_is_batch(batch: PyTree) -> None:
    """Raises where a stream says None, which holds no arrays, for a batch."""
    if batch is None:
        raise _error(
            "a batch is None.",
            "None, as a function returns that ends without `return`",
            "a pytree of arrays for each step",
            "look at what makes the batches; an iterator that is at its end stops",
        )


def check_has_batches(has: bool) -> None:
    """Raises where a stream has no batch at all."""
    if not has:
        raise _error(
            "the data have no batches.",
            "an iterable without elements",
            "an iterable of batches, or arrays",
            "make the iterator anew: one that was gone through is empty",
        )


def check_stream(batch_size: object) -> None:
    """Raises where batches are asked for of data that are batches."""
    if batch_size is not None:
        raise _error(
            "batch_size is given, and the data are batches already.",
            f"batch_size={batch_size!r}, and an iterable",
            "a batch size with arrays, or an iterable of batches without",
            "leave batch_size out",
        )


def check_history(before: PyTree, new: PyTree) -> None:
    """Raises where what a step records is not what the steps before it have recorded."""
    kinds = [
        (jax.tree.structure(part), [(x.dtype, x.shape[1:]) for x in jax.tree.leaves(part)]) for part in (before, new)
    ]
    if kinds[0] != kinds[1]:
        got, expected = _first_difference("history", *(jax.tree.map(lambda x: x[0], part) for part in (new, before)))
        raise _error(
            "what the steps record is not of the kind of the fit that is continued.",
            got,
            expected,
            "return the same auxiliary output as the first fit; to go on otherwise, begin a fit at its `params`",
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
    kinds = ("params", "parameters are"), ("opt_state", "optimizer's state is"), ("state", "state is")
    for name, what in (*kinds, ("averaged", "average is")):
        here, there = getattr(begun, name), getattr(resume, name)
        if _kinds(here) != _kinds(there):
            got, expected = _first_difference(name, here, there)
            raise _error(f"the {what} not of the kind of the fit that is continued.", got, expected, fix)


def check_folder(path: Any) -> None:
    """Raises where checkpoints cannot be written into a folder: a file stands there, or no path is given."""
    try:
        folder = pathlib.Path(path)
    except TypeError:
        got = show_aval(path)
    else:
        file = next((p for p in (folder, *folder.parents) if p.exists() and not p.is_dir()), None)
        if file is None:
            return
        got = f"{file.name!r}, which is a file"
    raise _error(
        "checkpoints cannot be written there.",
        got,
        "the path of a folder, which is made if it is not there",
        'pass a folder: checkpoint="fits/first"',
    )


_OF_CHECKPOINT = {
    "objective": "of another objective",
    "key": "of a fit with another key",
    "batches": "of a fit with other batches",
    "restarts": "of a fit with another number of starts",
    "options": "of a fit with other options",
    "params": "of a fit with other parameters",
    "opt_state": "of a fit with another optimizer",
    "state": "of a fit with another state",
    "averaged": "of a fit with another average",
    "history": "of a fit with other metrics",
    "program": "of another objective",
}


def check_checkpoint(here: dict[str, list[str]], there: dict[str, list[str]]) -> None:
    """Raises where a checkpoint is not of the fit that is asked for: what has to be equal, by name, in words."""
    for name, what in _OF_CHECKPOINT.items():
        if name in there and here[name] != there[name]:
            got, expected = _first_texts(here[name], there[name])
            if name == "program":
                (objective,) = here["objective"]
                got, expected = f"{objective}, as it reads now", f"{objective}, as it read"
            raise _error(
                f"the checkpoint is {what}.",
                got,
                f"{expected} when the checkpoint was written",
                "pass what that call got; or another folder",
            )


def check_checkpoint_steps(taken: int, stop: int) -> None:
    """Raises where a checkpoint has more steps than are asked for."""
    if taken > stop:
        raise _error(
            "the checkpoint has more steps than are asked for.",
            f"{stop} steps in all",
            f"at least {taken}, as many as the checkpoint has",
            f"pass num_steps={taken}; or another folder",
        )


def _show(batches: tuple[int, int] | None) -> str:
    return "no batches" if batches is None else f"batch_size={batches[1]} of {batches[0]} rows"


def _kinds(tree: PyTree) -> tuple[object, list[tuple[tuple[int, ...], np.dtype]]]:
    return jax.tree.structure(tree), [(jnp.shape(x), jnp.result_type(x)) for x in jax.tree.leaves(tree)]


def _first_difference(name: str, here: PyTree, there: PyTree) -> tuple[str, str]:
    texts = [
        [f"{show_aval(x)} at {name}{jax.tree_util.keystr(path)}" for path, x in jax.tree_util.tree_leaves_with_path(t)]
        for t in (here, there)
    ]
    return _first_texts(*texts)


def _first_texts(here: list[str], there: list[str]) -> tuple[str, str]:
    for got, expected in zip(here, there, strict=False):
        if got != expected:
            return got, expected
    return ", ".join(here) or "no arrays", ", ".join(there) or "no arrays"
