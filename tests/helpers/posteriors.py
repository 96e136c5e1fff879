"""Regressions in raw units, with posteriors from long NUTS runs; `python -m tests.helpers.posteriors` makes these.

Columns have scales of 1e-3 to 1e4, interactions, and correlations of 0.99 and more. NUTS runs on NumPyro models of the
same densities, in scaled coordinates, in double precision: 4 chains of 2000 draws after 1000, or more.
"""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer.reparam import Reparam

import vipl
from tests.helpers import analyses
from tests.helpers.analyses import Problem
from vipl import sample

FILE = pathlib.Path(__file__).with_suffix(".json")


def columns(rng, rows, scales, correlated):
    """A design in raw units; the first two columns are correlated, the last is an interaction."""
    x = rng.standard_normal((rows, len(scales) - 1))
    x[:, 1] = correlated * x[:, 0] + np.sqrt(1 - correlated**2) * x[:, 1]
    x = np.concatenate([x, x[:, :1] * x[:, -1:]], 1)
    return x * scales + scales * rng.standard_normal(len(scales))


def weights(scales, size=10.0):
    """The prior of the weights."""
    return dist.Normal(0.0, size / jnp.asarray(scales))


def problem(kind):
    """One of `KINDS`."""
    rng = np.random.default_rng(list(KINDS).index(kind))
    rows, scales, correlated = KINDS[kind]
    scales = np.asarray(scales)
    x = columns(rng, rows, scales, correlated)
    unit = (x - x.mean(0)) / x.std(0)
    signal = unit @ rng.normal(0.0, 0.7, len(scales))
    x = jnp.asarray(x)

    def linear(draw):
        a = draw("a", dist.Normal(0.0, 100.0))
        return a + (x - jnp.mean(x, 0)) @ draw("w", weights(scales, 50.0 if kind == "gaussian" else 10.0))

    def gaussian(draw):
        mean = linear(draw)
        draw("y", dist.Normal(mean, draw("s", dist.HalfNormal(100.0))))

    def logistic(draw):
        draw("y", dist.Bernoulli(logits=linear(draw)))

    def poisson(draw):
        draw("y", dist.Poisson(jnp.exp(linear(draw))))

    def heteroscedastic(draw):
        mean = linear(draw)
        log_sd = draw("c", dist.Normal(0.0, 3.0)) + (x[:, 0] - jnp.mean(x[:, 0])) * draw("v", weights(scales[0], 3.0))
        draw("y", dist.Normal(mean, jnp.exp(log_sd)))

    group = jnp.arange(rows) % 40

    def hierarchical(draw):
        sd = draw("sd", dist.HalfNormal(5.0))
        effects = draw("effects", dist.Normal(jnp.zeros(40), sd))  # of 125 rows each: centred is right
        draw("y", dist.Normal(linear(draw) + effects[group], draw("s", dist.HalfNormal(10.0))))

    y = {
        "gaussian": 40.0 + 7.0 * signal + 5.0 * rng.standard_normal(rows),
        "logistic": (rng.random(rows) < 1 / (1 + np.exp(-signal))).astype(int),
        "poisson": rng.poisson(np.exp(3.0 + 0.4 * signal)),
        "heteroscedastic": signal + np.exp(-0.5 + 0.6 * unit[:, 0]) * rng.standard_normal(rows),
        "hierarchical": signal + 1.5 * rng.standard_normal(40)[np.asarray(group)] + rng.standard_normal(rows),
    }[kind]
    density = locals()[kind]

    @vipl.gen
    def model():
        density(sample)

    def peer():
        density(lambda name, d: numpyro.sample(name, d, obs=y if name == "y" else None))

    return Problem(model(), {"y": jnp.asarray(y)}, peer)


def volatility(length=60):
    """A series whose log variance h is an autoregression; NumPyro's has standard noise in the place of h."""
    rng = np.random.default_rng(7)
    h = np.full(length, -1.0)
    for t in range(1, length):
        h[t] = -1.0 + 0.95 * (h[t - 1] + 1.0) + 0.25 * rng.standard_normal()
    y = jnp.asarray(np.exp(h / 2) * rng.standard_normal(length))

    def parameters(draw) -> tuple[Any, Any, Any]:
        return draw("mu", dist.Normal(0.0, 2.0)), draw("phi", dist.Beta(20.0, 1.5)), draw("sigma", dist.Gamma(2.0, 5.0))

    @vipl.gen
    def model():
        mu, phi, sigma = parameters(sample)

        def step(h, _):
            h = sample("h", dist.Normal(mu + phi * (h - mu), sigma))
            return h, sample("y", dist.Normal(0.0, jnp.exp(h / 2)))

        jax.lax.scan(step, mu, None, length=length)

    def peer():
        mu, phi, sigma = parameters(numpyro.sample)
        noise = numpyro.sample("h_base", dist.Normal(jnp.zeros(length), 1.0).to_event(1))
        h = jax.lax.scan(lambda h, e: (mu + phi * (h - mu) + sigma * e,) * 2, mu, noise)[1]
        numpyro.deterministic("h", h)
        numpyro.sample("y", dist.Normal(0.0, jnp.exp(h / 2)), obs=y)

    return Problem(model(), {"y": y}, peer)


KINDS = {
    "gaussian": (100, (1e-3, 1.0, 1e4, 10.0), 0.99),
    "logistic": (1000, (1e4, 1e2, 1e-3, 1.0, 1e-1), 0.995),
    "poisson": (500, (1e-2, 1e3, 1.0, 1e4), 0.99),
    "heteroscedastic": (300, (1e3, 1e-3, 1.0, 10.0), 0.99),
    "hierarchical": (5000, (1.0, 1e4, 1e-3), 0.99),
}


def references():
    """By problem and address: the means and standard deviations of the long runs."""
    return json.loads(FILE.read_text())


def long_run(kind):
    """Means and standard deviations by NUTS."""
    from numpyro.infer import MCMC, NUTS

    if kind in KINDS:
        peer, scales = problem(kind).peer, {"w": jnp.asarray(KINDS[kind][1]), "v": jnp.asarray(KINDS[kind][1][0])}
    else:
        peer, scales = (volatility() if kind == "volatility" else analyses.analysis(kind)).peer, {}

    def scaled() -> None:
        """The same density with weights in units of their columns."""
        with numpyro.handlers.reparam(config={name: _Scaled(scale) for name, scale in scales.items()}):
            peer()

    options = {"num_chains": 4, "chain_method": "sequential", "progress_bar": False}
    warmup, draws = (2000, 8000) if kind == "measurement_error" else (1000, 2000)  # its noise mixes slowly
    mcmc = MCMC(NUTS(scaled, dense_mass=kind != "volatility"), num_warmup=warmup, num_samples=draws, **options)
    mcmc.run(jax.random.key(1))
    from numpyro.diagnostics import summary

    worst = max(float(np.max(v["r_hat"])) for v in summary(mcmc.get_samples(group_by_chain=True)).values())
    print(f"{kind}: largest r_hat {worst:.4f}")
    kept = {k: v for k, v in mcmc.get_samples().items() if not k.endswith("_base")}
    return {k: [np.mean(v, 0).tolist(), np.std(v, 0).tolist()] for k, v in kept.items()}


class _Scaled(Reparam):
    """x = base / scale."""

    def __init__(self, scale: Any):
        self.scale = scale

    def __call__(self, name: str, fn: Any, obs: Any) -> tuple[None, Any]:
        base = numpyro.sample(f"{name}_base", dist.Normal(fn.loc * self.scale, fn.scale * self.scale))
        return None, base / self.scale


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    known = references() if len(sys.argv) > 1 else {}
    kinds = sys.argv[1:] or [*KINDS, *analyses.KINDS, "volatility"]
    FILE.write_text(json.dumps(known | {kind: long_run(kind) for kind in kinds}, indent=1) + "\n")
