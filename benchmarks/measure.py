"""Measures implementations of one gradient estimate side by side, in one process.

All of them have to estimate the same value and gradient: means over the keys of a line, of the compiled programs that
are then timed, are compared by z-scores. A fast wrong estimator is an error, not a result. Measured are, in turns:

- trace time, compile time, and time of a call (medians; `block_until_ready`; compiled code);
- floating-point operations and bytes of the compiled program (XLA's cost analysis);
- equations of the jaxpr, those of inner jaxprs included;
- memory: arguments, outputs and temporaries of the compiled program;
- relative variance of the gradient, and time x relative variance: a cheaper call with a noisier gradient is no gain.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

NUM_PROJECTIONS = 16


@dataclass
class Case:
    """One line of the table.

    Attributes:
      workload: the group of lines.
      name: the line's.
      objectives: implementation -> (key, params, *data) -> f[]; all are maximized or all minimized. The first one is
        vipl's; "handwritten" is what ratios are taken to.
      args: (params, *data).
      samples: keys by which the gradients are compared; 0: they are not comparable, `note` says why.
      note: what a reader of the table should know.
    """

    workload: str
    name: str
    objectives: dict[str, Callable]
    args: tuple[Any, ...]
    samples: int = 400
    note: str = ""


class DisagreementError(Exception):
    """Two implementations do not estimate the same gradient."""


def step_of(objective: Callable) -> Callable:
    """(key, params, *data) -> (value, gradient in params)."""
    return jax.value_and_grad(objective, argnums=1)


def count_equations(jaxpr: Any) -> int:
    """Equations of a jaxpr, with those of the jaxprs in it."""
    total = 0
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        total += 1
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                total += count_equations(inner)
    return total


def _draws(case: Case, step: Callable) -> np.ndarray:
    """f[samples, projections + 1], random projections of the gradient, and the value, for each key."""
    leaves = jax.tree.leaves(case.args[0])
    signs = [
        jax.random.rademacher(jax.random.fold_in(jax.random.key(99), i), (NUM_PROJECTIONS, x.size), jnp.float32)
        for i, x in enumerate(leaves)
    ]

    @jax.jit
    def projected(signs, value, grads):
        parts = [s @ jnp.ravel(g) for s, g in zip(signs, jax.tree.leaves(grads), strict=True)]
        return jnp.append(sum(parts), value)

    keys = jax.random.split(jax.random.key(7), case.samples)
    return np.asarray([np.asarray(projected(signs, *step(key, *case.args))) for key in keys], np.float64)


def compare(case: Case, steps: dict[str, Callable] | None = None) -> dict[str, dict[str, float]]:
    """The relative variance of each gradient; raises `DisagreementError` where |z| > 5 for a value or a projection."""
    if not case.samples:
        return {}
    steps = steps or {name: jax.jit(step_of(f)) for name, f in case.objectives.items()}
    moments = {name: _draws(case, step) for name, step in steps.items()}
    variances = {name: draws[:, :-1].var(0).mean() for name, draws in moments.items()}
    least = min(variances, key=variances.__getitem__)
    noise = variances[least] / case.samples  # of the mean: all share one gradient, and this is the best estimate of it
    mean2 = max(np.mean(moments[least][:, :-1].mean(0) ** 2) - noise, noise, 1e-30)
    out = {name: {"relative_variance": float(v / mean2)} for name, v in variances.items()}
    reference = "handwritten" if "handwritten" in moments else next(iter(moments))
    base = moments[reference]
    for name, draws in moments.items():
        se = np.sqrt((draws.var(0) + base.var(0)) / len(draws))
        # both sides are float32: differences below its resolution are none
        se = se + 1e-5 * np.abs(base).max(0)
        z = np.abs(draws.mean(0) - base.mean(0)) / se
        out[name]["max_z"] = float(z.max())
        if not z.max() <= 5:
            raise DisagreementError(f"{case.workload}, {case.name}: {name} against {reference}: z = {z.max():.1f}")
    return out


def measure(
    case: Case, *, seconds: float = 2.0, traces: int = 5, compiles: int = 1, check: bool = True
) -> dict[str, dict[str, float]]:
    """implementation -> figures."""
    out: dict[str, dict[str, float]] = {name: {} for name in case.objectives}
    steps = {name: step_of(f) for name, f in case.objectives.items()}
    args = (jax.random.key(0), *case.args)
    compiled, trace_times, compile_times = {}, {n: [] for n in steps}, {n: [] for n in steps}
    for i in range(traces):
        if i > 2 and max(map(max, trace_times.values())) > 0.5:  # of long ones three
            break
        for name, step in steps.items():
            jax.clear_caches()
            start = time.perf_counter()
            traced = jax.jit(step).trace(*args)
            trace_times[name].append(time.perf_counter() - start)
            if i < compiles:
                start = time.perf_counter()
                compiled[name] = traced.lower().compile()
                compile_times[name].append(time.perf_counter() - start)
                out[name]["equations"] = count_equations(traced.jaxpr)
    for name, found in (compare(case, compiled) if check else {}).items():
        out[name] |= found
    for name, c in compiled.items():
        cost = c.cost_analysis()
        cost = cost[0] if isinstance(cost, list) else cost
        memory = c.memory_analysis()
        out[name] |= {
            "trace_s": statistics.median(trace_times[name]),
            "compile_s": statistics.median(compile_times[name]),
            "build_s": statistics.median(trace_times[name]) + statistics.median(compile_times[name]),
            "flops": cost.get("flops", 0.0),
            "bytes": cost.get("bytes accessed", 0.0),
            "memory": float(memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes),
        }
    for name, t in call_times(compiled, args, seconds).items():
        out[name]["time_s"] = t
        if "relative_variance" in out[name]:
            out[name]["time_x_variance"] = t * out[name]["relative_variance"]
    return out


def call_times(compiled: dict[str, Any], args: tuple[Any, ...], seconds: float) -> dict[str, float]:
    """Medians over rounds in which all take turns, in an order drawn anew for each.

    A turn is as many calls as need 10 ms, and waits for the last of them: of a single short call most is the way to a
    thread of XLA's and back, which all implementations have in common. Before it short ones are called once, for the
    caches that the one before has filled.
    """

    def turn(c: Any, calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            result = c(*args)
        jax.block_until_ready(result)
        return (time.perf_counter() - start) / calls

    calls = {n: max(1, int(0.01 / statistics.median(turn(c, 1) for _ in range(9)))) for n, c in compiled.items()}
    times: dict[str, list[float]] = {name: [] for name in compiled}
    order, rng = list(compiled), random.Random(0)
    end = time.perf_counter() + seconds * len(compiled)
    while time.perf_counter() < end or len(times[order[0]]) < 5:
        rng.shuffle(order)
        for name in order:
            if calls[name] > 1:
                turn(compiled[name], 1)
            times[name].append(turn(compiled[name], calls[name]))
    return {name: statistics.median(t) for name, t in times.items()}
