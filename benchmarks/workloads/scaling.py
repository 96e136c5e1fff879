"""How trace time, equations and run time grow: with the sites of a program, with steps, and with lanes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax

import vipl
from benchmarks.measure import Case, measure, step_of
from vipl import CoupledAlternative, Enumerate, LeaveOneOut, LocalEnumerate, MeasureValued, Reparam, Score, sample

ESTIMATORS = {
    "Reparam": Reparam(),
    "Score": Score(),
    "MeasureValued": MeasureValued(),
    "CoupledAlternative": CoupledAlternative(),
    "LocalEnumerate": LocalEnumerate(),
    "Enumerate": Enumerate(),
}


def chain(n: int, estimator: Any) -> Any:
    """A chain of n sites, written out; its value is the square of the sum."""

    @vipl.expectation
    def program(theta):
        x, total = jnp.zeros(()), jnp.zeros(())
        for i in range(n):
            if isinstance(estimator, Reparam):
                x = sample(f"x{i}", dist.Normal(theta + 0.5 * x, 1.0), estimator)
            else:
                x = 1.0 * sample(f"x{i}", dist.Bernoulli(logits=theta + 0.5 * x), estimator)
            total = total + x
        return total**2 / n

    return program.estimate


def looped(length: int, estimator: Any) -> Any:
    """The same as a scan."""

    @vipl.expectation
    def program(theta):
        def step(carry, _):
            x, total = carry
            if isinstance(estimator, Reparam):
                x = sample("x", dist.Normal(theta + 0.5 * x, 1.0), estimator)
            else:
                x = 1.0 * sample("x", dist.Bernoulli(logits=theta + 0.5 * x), estimator)
            return (x, total + x), None

        (_, total), _ = lax.scan(step, (jnp.zeros(()), jnp.zeros(())), None, length=length)
        return total**2 / length

    return program.estimate


def growth(quick: bool) -> dict[str, Any]:
    """Figures for n = 4 to 64 sites, and of scans of T steps."""
    out: dict[str, Any] = {"sites": {}, "steps": {}}
    theta = jnp.array(0.3)
    for name, estimator in ESTIMATORS.items():
        for n in (4, 8) if quick else (4, 8, 16, 32, 64):
            if name == "Enumerate" and n > 16:
                continue
            case = Case("growth", name, {"vipl": chain(n, estimator)}, (theta,), samples=0)
            figures = measure(case, seconds=0.3, traces=2)["vipl"]
            keep = ("trace_s", "compile_s", "time_s", "equations", "flops")
            out["sites"].setdefault(name, {})[n] = {k: figures[k] for k in keep}
    for name in ("Reparam", "Score", "MeasureValued", "CoupledAlternative"):
        for length in (10, 100) if quick else (10, 100, 1000):
            case = Case("growth", name, {"vipl": looped(length, ESTIMATORS[name])}, (theta,), samples=0)
            figures = measure(case, seconds=0.3, traces=2)["vipl"]
            out["steps"].setdefault(name, {})[length] = {k: figures[k] for k in ("trace_s", "time_s", "equations")}
    return out


def lanes() -> dict[str, dict[int, float]]:
    """The standard deviation of the gradient of one lane's parameter, for 1, 10 and 100 lanes.

    Lanes as `vmap` of `estimate`, as a `vmap` inside one program, and as the elements of one site.
    """
    per_lane = vipl.expectation(lambda theta: 1.0 + sample("b", dist.Bernoulli(logits=theta), Score()))

    def mapped(key, thetas):
        return jnp.sum(jax.vmap(per_lane.estimate)(jax.random.split(key, thetas.shape[0]), thetas))

    def plate(estimator):
        @vipl.expectation
        def program(thetas):
            return jnp.sum(jax.vmap(lambda t: 1.0 + sample("b", dist.Bernoulli(logits=t), estimator))(thetas))

        return lambda key, thetas: program.estimate(key, thetas, num_samples=2)

    @vipl.expectation
    def one_site(thetas):
        return jnp.sum(1.0 + sample("b", dist.Bernoulli(logits=thetas).to_event(1), Score()))

    ways = {
        "vmap of estimate": mapped,
        "vmap in one program": plate(Score()),
        "vmap in one program, leave one out": plate(Score(LeaveOneOut())),
        "one vector site": lambda key, thetas: one_site.estimate(key, thetas, num_samples=2),
    }
    out: dict[str, dict[int, float]] = {}
    for name, objective in ways.items():
        for n in (1, 10, 100):
            step = step_of(objective)
            grads = jax.jit(lambda keys, n=n, step=step: jax.vmap(lambda k: step(k, jnp.zeros(n))[1][0])(keys))
            out.setdefault(name, {})[n] = float(grads(jax.random.split(jax.random.key(1), 20_000)).std())
    return out
