"""Everyday analyses, written for vipl and for NumPyro: lines, seconds to an accurate posterior, accuracy.

`python -m benchmarks practice [NAME ...] [--json OUT]`; docs/benchmarks.md says what is measured. A problem is a module
of this folder that holds

    data()                                       what is observed, as keyword arguments
    with_vipl(key, **data)                       -> posterior, ArviZ tree
    model(**data)                                for NumPyro
    with_numpyro(key, num_steps, rate, **data)   -> guide, parameters, ArviZ tree
    LATENTS                                      addresses that are compared
    COORDINATES                                  what NUTS may need: keyword arguments of its kernel

Both functions go from the model to a tree with draws of the posterior, of the predictive, and the log likelihood. A
problem of networks has no LATENTS: its functions return the bound on held-out data, and it has a guide(...), too.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import inspect
import json
import pathlib
import time
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import jax
import numpy as np
import numpyro
import optax
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from numpyro.infer.util import log_density

import vipl
from benchmarks.machine import machine
from vipl.cache.programs import forget

NAMES = ("schools", "intercepts", "logistic", "gaussian_process", "mixture", "volatility", "hidden_markov", "vae")
LADDER = (500, 1000, 1500, 2000, 3000, 5000, 7000, 10_000, 15_000, 20_000, 30_000, 50_000)
RATES = (1e-2, 3e-3, 1e-3)
DRAWS = 20_000
ENOUGH = 0.1  # error of a mean, in sds of the posterior


def lines(*functions: Any) -> int:
    """Lines of code: no docstrings, comments and blank lines."""
    count = 0
    for function in functions:
        source = inspect.getsource(function)
        documented = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef) and ast.get_docstring(n)]
        prose = {i for n in documented for i in range(n.body[0].lineno, (n.body[0].end_lineno or 0) + 1)}
        code = [x.strip() for i, x in enumerate(source.splitlines(), 1) if i not in prose]
        count += sum(1 for x in code if x and not x.startswith("#"))
    return count


def cold() -> None:
    """Nothing is compiled yet."""
    jax.clear_caches()
    forget()


def moments(draws: Any, latents: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations of all numbers of the compared latents; draws have one leading axis."""
    joined = np.concatenate([np.asarray(draws[name]).reshape(len(draws[name]), -1) for name in latents], 1)
    return joined.mean(0), joined.std(0)


def errors(found: Any, exact: Any) -> tuple[float, float]:
    """The largest error of a mean in sds, and of an sd in percent."""
    mean = np.max(np.abs(found[0] - exact[0]) / exact[1])
    sd = 100 * np.max(np.abs(found[1] / exact[1] - 1))
    return tuple(float(x) if np.isfinite(x) else np.inf for x in (mean, sd))  # type: ignore[return-value]


def k_hat_of_numpyro(key: Any, problem: ModuleType, guide: Any, params: Any, data: Any) -> float:
    """Of importance weights from the guide to the model."""
    from vipl.posterior._psis import smooth

    def weight(key: Any) -> Any:
        seeded = numpyro.handlers.seed(guide, key)
        trace = numpyro.handlers.trace(numpyro.handlers.substitute(seeded, params)).get_trace(**data)
        values = {k: v["value"] for k, v in trace.items() if v["type"] == "sample"}
        log_q, _ = log_density(guide, (), data, params | values)
        log_p, _ = log_density(problem.model, (), data, params | values)
        return log_p - log_q

    return float(smooth(np.asarray(jax.vmap(weight)(jax.random.split(key, 4000)))).k_hat)


def long_run(key: Any, problem: ModuleType, data: Any) -> tuple[Any, float, float]:
    """Moments by NUTS, the seconds it takes, and its largest r-hat."""
    cold()
    begun = time.perf_counter()
    kernel = NUTS(problem.model, **getattr(problem, "COORDINATES", {}))
    options = {"num_chains": 4, "chain_method": "vectorized", "progress_bar": False}
    mcmc = MCMC(kernel, num_warmup=1000, num_samples=2000, **options)
    mcmc.run(key, **data)
    draws = mcmc.get_samples(group_by_chain=True)
    jax.block_until_ready(draws)
    seconds = time.perf_counter() - begun
    summary = numpyro.diagnostics.summary({k: draws[k] for k in problem.LATENTS})
    worst = max(float(np.max(x["r_hat"])) for x in summary.values())
    return moments(mcmc.get_samples(), problem.LATENTS), seconds, worst


def measure(name: str) -> dict[str, Any]:
    """One row."""
    problem = importlib.import_module(f"benchmarks.practice.{name}")
    if not hasattr(problem, "LATENTS"):
        return measure_networks(name, problem)
    data, key = problem.data(), jax.random.key(0)
    exact, nuts_seconds, r_hat = long_run(key, problem, data)

    cold()
    begun = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with returning(vipl, "infer") as fit:
            posterior, _ = problem.with_vipl(key, **data)
        seconds = time.perf_counter() - begun
        improved = posterior.improve(key, 4000)
    mine = errors(moments(posterior.sample(key, DRAWS), problem.LATENTS), exact)
    row: dict[str, Any] = {
        "name": name,
        "family": type(posterior.guide).__name__,
        "lines": (lines(problem.with_vipl), lines(problem.model, problem.with_numpyro)),
        "vipl": {
            "seconds": seconds,
            "until_fit": fit[0] - begun,
            "error": mine,
            "k_hat": improved.weights.k_hat,
            "converged": posterior.report.converged,
        },
        "nuts": {"seconds": nuts_seconds, "r_hat": r_hat},
    }
    wanted = max(ENOUGH, mine[0])
    searched = [search(key, problem, rate, data, exact, wanted) for rate in RATES]
    enough = [x for x in searched if x["error"][0] <= wanted]
    row["numpyro"] = searched
    row["reached"] = bool(enough)
    row["best"] = min(
        [timed(key, problem, x, data) for x in enough] or [min(searched, key=lambda x: x["error"][0])],
        key=lambda x: x["seconds"],
    )
    return row


def measure_networks(name: str, problem: ModuleType) -> dict[str, Any]:
    """One row of a model with networks: the same steps of the same optimizer, and the bound on held-out data."""
    data, key = problem.data(), jax.random.key(0)
    row: dict[str, Any] = {
        "name": name,
        "lines": (lines(problem.with_vipl), lines(problem.model, problem.guide, problem.with_numpyro)),
    }
    for who, fn in (("vipl", problem.with_vipl), ("numpyro", problem.with_numpyro)):
        cold()
        begun = time.perf_counter()
        bound = float(fn(key, **data))
        row[who] = {"seconds": time.perf_counter() - begun, "bound": bound}
    return row


def search(key: Any, problem: ModuleType, rate: float, data: Any, exact: Any, wanted: float) -> dict[str, Any]:
    """The least number of steps of the ladder at which NumPyro's fit has an error of the means as small as is wanted.

    The steps are those of one run, which goes on from rung to rung; where none is enough, the best rung.
    """
    guide, *_ = problem.with_numpyro(key, 1, rate, **data)
    svi = SVI(problem.model, guide, optax.adam(rate), Trace_ELBO())
    state, best, done, begun = svi.init(key, **data), None, 0, time.perf_counter()
    more = jax.jit(lambda s, n: jax.lax.fori_loop(0, n, lambda _, s: svi.update(s, **data)[0], s))
    draw = jax.jit(lambda p: guide.sample_posterior(key, p, sample_shape=(DRAWS,)))
    for num_steps in LADDER:
        state, done = more(state, num_steps - done), num_steps
        params = svi.get_params(state)
        error = errors(moments(draw(params), problem.LATENTS), exact)
        taken = time.perf_counter() - begun
        if best is None or error[0] < best["error"][0]:
            best = {"rate": rate, "steps": num_steps, "seconds": taken, "error": error}
            best["k_hat"] = k_hat_of_numpyro(key, problem, guide, params, data)
        if error[0] <= wanted or taken > 120:
            break
    assert best is not None
    return best


def timed(key: Any, problem: ModuleType, found: dict[str, Any], data: Any) -> dict[str, Any]:
    """What was found, with the seconds of the whole function, from a process that has compiled nothing."""
    cold()
    begun = time.perf_counter()
    with returning(SVI, "run") as fit:
        problem.with_numpyro(key, found["steps"], found["rate"], **data)
    return found | {"seconds": time.perf_counter() - begun, "until_fit": fit[0] - begun}


@contextlib.contextmanager
def returning(owner: Any, name: str) -> Iterator[list[float]]:
    """When calls of a function return, its arrays computed."""
    times: list[float] = []
    own = getattr(owner, name)

    def noted(*args: Any, **kwargs: Any) -> Any:
        result = own(*args, **kwargs)
        jax.block_until_ready(result.params)
        times.append(time.perf_counter())
        return result

    setattr(owner, name, noted)
    try:
        yield times
    finally:
        setattr(owner, name, own)


COLUMNS = (
    "problem",
    "guide",
    "lines, vipl",
    "NumPyro",
    "seconds (until the fit), vipl",
    "NumPyro",
    "NUTS",
    "error of a mean, vipl",
    "NumPyro",
    "of an sd, vipl",
    "NumPyro",
    "k-hat, vipl",
    "NumPyro",
)
HEADING = "| " + " | ".join(COLUMNS) + " |\n|" + " --- |" * len(COLUMNS)


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    if "bound" in row["vipl"]:
        mine, other = row["vipl"], row["numpyro"]
        seconds = f"{mine['seconds']:.1f} | {other['seconds']:.1f} | "
        bounds = f"held-out bound {mine['bound']:.2f} | {other['bound']:.2f}"
        return f"| {row['name']} | networks | {row['lines'][0]} | {row['lines'][1]} | {seconds} | {bounds} | | | | |"
    mine, other = row["vipl"], row["best"]
    cells = [
        row["name"],
        row["family"],
        *map(str, row["lines"]),
        f"{mine['seconds']:.1f} ({mine['until_fit']:.1f})" + ("" if mine["converged"] else ", rule not met"),
        f"{other['seconds']:.1f} ({other['until_fit']:.1f})"
        if row["reached"]
        else f"{other['seconds']:.1f}, not reached",
        f"{row['nuts']['seconds']:.1f} (r-hat {row['nuts']['r_hat']:.3f})",
        f"{mine['error'][0]:.2f} sd",
        f"{other['error'][0]:.2f} sd",
        f"{mine['error'][1]:.0f} %",
        f"{other['error'][1]:.0f} %",
        f"{mine['k_hat']:.2f}",
        f"{other['k_hat']:.2f}",
    ]
    return "| " + " | ".join(cells) + " |"


def main(arguments: list[str]) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks practice", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *NAMES], help="problems; none: all")
    parser.add_argument("--json", help="where the results go")
    options = parser.parse_args(arguments)
    print(HEADING, flush=True)
    rows = []
    for name in options.names or NAMES:
        rows.append(measure(name))
        print(line(rows[-1]), flush=True)
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
