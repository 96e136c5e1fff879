"""Posteriors in files: arrays and a sentence of JSON that says which guide they are of; no pickle."""

from __future__ import annotations

import json
import math
import pathlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vipl import guides
from vipl._checks import is_traced
from vipl._types import Array, Bool, Float, Int, PyTree
from vipl.analysis.regions import Region
from vipl.errors import ProgramError
from vipl.gen import Program
from vipl.gen._choices import Address, Choices, flatten
from vipl.guides._combine import Combined, parts_of
from vipl.posterior._draws import addresses_of, at_draws, sizes_by_site


@dataclass(frozen=True)
class Report:
    """How a guide was fitted.

    Attributes:
      method: "natural gradients", "stochastic gradients", "forward-backward", "Laplace", "Pathfinder" or "Boosted".
      values: f[steps], the estimate of the evidence lower bound at each step; "Boosted": with each component.
      converged: whether the stopping rule of the method was met; None of steps of one's own optimizer, which has none.
      steps: how many steps were taken.
      seconds: how long it took, compilation included.
      note: what else there is to say.
    """

    method: str
    values: np.ndarray | Float[Array, " steps"] = field(repr=False)
    converged: bool | Bool[Array, ""] | None
    steps: int | Int[Array, ""]
    seconds: float
    note: str = ""


def write(
    path: str | pathlib.Path,
    guide: Any,
    params: PyTree,
    model: Program,
    data: Choices,
    report: Report | None,
    draws: Choices,
) -> None:
    """See `Posterior.save`; by the log densities of its sites at a few draws the model is known again."""
    said, arrays = _describe(guide)
    said |= {"version": 1, "model": model.name, "data": sorted(keyed(flatten(data, "data")))}
    said |= {"shapes": _shapes(data), "latent": sorted(keyed(dict.fromkeys(guide.addresses)))}
    said |= {"supports": _supports(guide), "sketches": _sketches(data)}
    arrays |= {f"params/{k}": np.asarray(x) for k, x in enumerate(jax.tree.leaves(params))}
    known = flatten(draws, "draws")
    if model.is_exact() and set(addresses_of(model)) <= {*known, *flatten(data, "data")}:
        said["drawn"] = list(map(list, known))
        arrays |= {f"drawn/{k}": np.asarray(x) for k, x in enumerate(known.values())}
        weighed = _weighed(model, data, known)
        said["weighed"] = list(weighed)
        arrays |= {f"log_p/{name}": x for name, x in weighed.items()}
    if report is not None:
        r = report
        converged = None if r.converged is None else bool(r.converged)
        said["report"] = [r.method, converged, int(r.steps), r.seconds, r.note]
        arrays["report"] = np.asarray(r.values)
    with pathlib.Path(path).open("wb") as file:
        np.savez(file, **arrays, said=np.frombuffer(json.dumps(said).encode(), np.uint8))  # pyright: ignore


def _describe(guide: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What makes a guide again: what JSON holds, and arrays."""
    if isinstance(guide, Combined):
        parts, arrays = {}, {}
        for name, part in guide.parts.items():
            parts[name], more = _describe(part)
            arrays |= {f"{name}/{k}": x for k, x in more.items()}
        return {"combine": parts}, arrays
    name, options = type(guide).__name__, dict(getattr(guide, "options", {}))
    if isinstance(guide, guides.Amortized):
        raise ProgramError(
            "an amortized guide cannot be written to a file: its encoder is a function of Python.",
            at="Posterior.save",
            got=f"{guide!r}",
            expected="a guide that its options, numbers and names, make again",
            fix="write posterior.params yourself, and make vipl.Posterior(model, data, guide, params) again",
        )
    frame, estimator = options.pop("frame", None), options.pop("discrete", None)
    if getattr(guides, name, None) is not type(guide) or estimator is not None:
        raise ProgramError(
            "a guide cannot be written to a file.",
            at="Posterior.save",
            got=name if estimator is None else f"{name} with discrete={type(estimator).__name__}()",
            expected="a guide of vipl.guides, with the estimators that it chooses itself",
            fix="write posterior.params yourself, and make vipl.Posterior(model, data, guide, params) again",
        )
    arrays = {} if frame is None else {"frame/loc": np.asarray(frame[0]), "frame/scale_tril": np.asarray(frame[1])}
    return {"guide": name, "options": options, "framed": frame is not None}, arrays


def _guide_of(said: dict[str, Any], arrays: Mapping[str, np.ndarray], model: Program, data: Choices) -> Any:
    if "combine" in said:
        each = {}
        for name, part in said["combine"].items():
            own = {k.removeprefix(f"{name}/"): x for k, x in arrays.items() if k.startswith(f"{name}/")}
            each[name] = _guide_of(part, own, model, data)
        return guides.combine(each)
    options = {k: _tuples(x) for k, x in said["options"].items()}
    if said["framed"]:
        options["frame"] = (jnp.asarray(arrays["frame/loc"]), jnp.asarray(arrays["frame/scale_tril"]))
    return getattr(guides, said["guide"])(model, data, **options)


def _tuples(x: Any) -> Any:
    """What JSON made lists of."""
    return tuple(map(_tuples, x)) if isinstance(x, list) else x


def read(path: str | pathlib.Path, program: Program, data: Choices) -> tuple[Any, PyTree, Report | None]:
    """See `vipl.load`: the guide, its parameters and how they were found."""
    at = f"vipl.load of {pathlib.Path(path).name}"
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        said = json.loads(arrays.pop("said").tobytes())
    except (ValueError, KeyError, TypeError, OSError, EOFError, NotImplementedError, zipfile.BadZipFile) as error:
        if isinstance(error, FileNotFoundError):
            raise
        found = "a part of a file, or one of another kind"
        fix = "pass the path that Posterior.save was given; if the file is cut off, save again"
        raise _not_loaded(at, found, "a file that Posterior.save wrote", fix) from None
    here = sorted(keyed(flatten(data, "the data")))
    if said["model"] != program.name or said["data"] != here:
        got = f"{said['model']} given {', '.join(said['data'])}"
        raise _not_loaded(at, got, f"{program.name} given {', '.join(here)}")
    if said.get("shapes", _shapes(data)) != _shapes(data):
        raise _not_loaded(at, f"data of shapes {said['shapes']}", f"shapes {_shapes(data)}")
    if not is_traced(data):
        sketches = _sketches(data)
        other = [name for name, x in said.get("sketches", {}).items() if not _alike(x, sketches[name])]
        if other:
            raise _not_loaded(at, f"other data at {', '.join(other)}", "the data that were fitted, to single precision")
    guide = _guide_of(said, arrays, program, data)
    latent = sorted(keyed(dict.fromkeys(guide.addresses)))
    if said.get("latent", latent) != latent:
        raise _not_loaded(at, f"latent choices {', '.join(said['latent'])}", ", ".join(latent))
    supports = _supports(guide)
    for address, support in said.get("supports", {}).items():
        if not _agree(support, supports[address]):
            was, its = (f"{address}: {name or measure} from {low} to {high}"
                        for measure, name, low, high in (support, supports[address]))  # fmt: skip
            raise _not_loaded(at, was, its)
    if "drawn" in said and not is_traced((data, program)):
        _check_density(said, arrays, program, data, at)
    return guide, _params_of(guide, arrays, at), _report_of(said, arrays)


def _weighed(model: Program, data: Choices, values: Mapping[Address, Any]) -> dict[str, np.ndarray]:
    """By site f64[n, 2], the log densities at n values of the latent choices, and the sum of their terms' sizes."""
    number = len(next(iter(values.values())))
    found = at_draws("log densities by site", sizes_by_site, model, data, jax.random.key(0), values, number)
    return {name: np.asarray(x, np.float64) for name, x in keyed(found).items()}


def _check_density(
    said: dict[str, Any], arrays: Mapping[str, np.ndarray], program: Program, data: Choices, at: str
) -> None:
    """Raises where a site's log densities at the draws in a file are others than rounding makes them.

    In another precision draws and data are rounded, too, which moves a log density by what its slope says: a hundredth
    of the terms' sizes is allowed for then, and what is not finite is passed over.
    """
    values = {tuple(address): jnp.asarray(arrays[f"drawn/{k}"]) for k, address in enumerate(said["drawn"])}
    moved = [x.dtype != arrays[f"drawn/{k}"].dtype for k, x in enumerate(values.values())]
    share, least = (0.01, 0.1) if any(moved) else (1e-5, 0.01)
    there = {name: arrays[f"log_p/{name}"] for name in said["weighed"]}
    for name, its in _weighed(program, data, values).items():
        was = there.get(name)
        if was is None:
            raise _not_loaded(at, f"no choice {name!r}", "the choices of this model")
        known = np.isfinite(was[:, 0]) & np.isfinite(its[:, 0])
        far = np.abs(was[:, 0] - its[:, 0]) > least + share * was[:, 1]
        wrong = np.where(known, far, (was[:, 0] != its[:, 0]) & ~np.isnan(was[:, 0]) & (not any(moved)))
        if wrong.any():
            k = int(np.argmax(wrong))
            got = f"log density {was[k, 0]:.6g} of {name!r} at a draw, which is {its[k, 0]:.6g} in this model"
            raise _not_loaded(at, got, "the same density: other priors, covariates or arguments are another model")


def _shapes(data: Choices) -> dict[str, list[int]]:
    return {name: list(np.shape(x)) for name, x in sorted(keyed(flatten(data, "data")).items())}


def _sketches(data: Choices) -> dict[str, list[float]]:
    """By address, numbers that tell data apart, and that rounding to single precision moves by less than 1e-6.

    The largest number, and two sums Σ w_i x_i / sqrt(n) of the others relative to it, by normal w; NaN and infinities
    count as numbers that are larger.
    """
    out = {}
    for name, x in keyed(flatten(data, "data")).items():
        numbers = np.asarray(x).astype(np.float64).reshape(-1)
        finite = np.isfinite(numbers)
        largest = float(np.max(np.abs(numbers), where=finite, initial=0.0))
        scaled = np.where(finite, numbers / (largest or 1.0), np.where(np.isnan(numbers), 5.0, np.sign(numbers) * 3.0))
        weights = np.random.default_rng(0).standard_normal((2, numbers.size))
        out[name] = [largest, *(weights @ scaled / math.sqrt(max(numbers.size, 1))).tolist()]
    return out


def _alike(one: list[float], other: list[float]) -> bool:
    """Whether two sketches are of the same data, to single precision."""
    return math.isclose(one[0], other[0], rel_tol=1e-6) and bool(np.allclose(one[1:], other[1:], rtol=0, atol=1e-6))


def _supports(guide: Any) -> dict[str, list[Any]]:
    """Of each latent choice measure, structure, lower and upper bounds; None for what is not there, or not known."""
    latents = [part.latents for part in parts_of(guide)]
    real = {x.address: _support(x.region) for each in latents for x in each.real}
    discrete = {x.address: ["integers", None, x.low, x.low + x.number - 1] for each in latents for x in each.discrete}
    return keyed(real | discrete)


def _support(region: Region | None) -> list[Any]:
    if region is None:
        return [None, None, None, None]
    measure, name = (x[0] if isinstance(x, tuple) else x for x in (region.measure, region.structure))
    return [measure, name, *(None if x is None else x.array().tolist() for x in (region.low, region.high))]


def _agree(one: list[Any], other: list[Any]) -> bool:
    """Whether two supports are the same, to rounding; what is not known agrees with everything."""
    if None in (one[0], other[0]):
        return True
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(one[2:], other[2:], strict=True) if None not in (a, b)]
    near = all(a.shape == b.shape and np.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in pairs)
    return one[:2] == other[:2] and near


def _params_of(guide: Any, arrays: Mapping[str, np.ndarray], at: str) -> PyTree:
    leaves, structure = jax.tree.flatten(guide.init())
    stored = [arrays[f"params/{k}"] for k in range(sum(name.startswith("params/") for name in arrays))]
    if [x.shape for x in leaves] != [x.shape for x in stored]:
        raise _not_loaded(
            at, f"parameters of shapes {[x.shape for x in stored]}", f"shapes {[x.shape for x in leaves]}"
        )
    return jax.tree.unflatten(structure, [jnp.asarray(x) for x in stored])


def _report_of(said: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> Report | None:
    if "report" not in said:
        return None
    method, converged, steps, seconds, note = said["report"]
    return Report(method, arrays["report"], converged, steps, seconds, note)


def keyed(flat: Mapping[Address, Any]) -> dict[str, Any]:
    """With the parts of an address joined, as ArviZ and files have names."""
    return {"/".join(a): x for a, x in flat.items()}


def _not_loaded(
    at: str, got: str, expected: str, fix: str = "pass the model and the data that were fitted"
) -> ProgramError:
    return ProgramError(
        "a file does not hold this posterior.",
        at=at,
        got=got,
        expected=expected,
        fix=fix,
    )
