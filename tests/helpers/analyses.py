"""Eight everyday posteriors, with long NUTS runs beside them, which `python -m tests.helpers.posteriors` makes too.

A Gaussian mixture, a hidden Markov model with its states summed out, GARCH(1, 1), an autoregression of order 5, a
Gaussian process, errors of measurement, item responses, and survival times that are partly censored. Each is written
once, as a function of what draws a site; the data are simulated from known values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax
from jax.scipy.special import logsumexp

import vipl

Draw = Callable[[str, Any], Any]


class Problem(NamedTuple):
    """A model with its data, and the same for NumPyro."""

    model: Any
    data: dict[str, Any]
    peer: Callable[[], None]


def ordered(loc, scale):
    """Numbers in increasing order."""
    return dist.TransformedDistribution(dist.Normal(loc, scale).to_event(1), dist.transforms.OrderedTransform())


def mixture(rng):
    """Two normals whose scales differ."""
    first = rng.random(200) < 0.35
    y = np.where(first, -1.5 + 0.5 * rng.standard_normal(200), 1.0 + 0.9 * rng.standard_normal(200))

    def density(draw):
        share = draw("share", dist.Beta(2.0, 2.0))
        mu = draw("mu", ordered(jnp.zeros(2), jnp.array([3.0, 1.0])))
        s = draw("s", dist.LogNormal(jnp.zeros(2), 0.5))
        parts = dist.MixtureSameFamily(dist.Categorical(jnp.stack([share, 1 - share])), dist.Normal(mu, s))
        draw("y", parts.expand([200]))

    return density, y


@vipl.gen
def chain(stay, mu, s, length):
    """Two hidden states, seen through normal noise."""
    rows = jnp.stack([jnp.stack([stay[0], 1 - stay[0]]), jnp.stack([1 - stay[1], stay[1]])])

    def step(probs, _):
        z = vipl.sample("z", dist.Categorical(probs))
        vipl.sample("y", dist.Normal(mu[z], s))
        return rows[z], None

    lax.scan(step, jnp.array([0.5, 0.5]), None, length=length)


class Chain(dist.Distribution):
    """The same for NumPyro, by the forward recursion."""

    def __init__(self, stay: Any, mu: Any, s: Any, length: int):
        self.stay, self.mu, self.s = stay, mu, s
        super().__init__(event_shape=(length,))

    def log_prob(self, value: Any) -> Any:
        """log p(y) = logsumexp over states of the last message."""
        rows = jnp.log(jnp.array([[self.stay[0], 1 - self.stay[0]], [1 - self.stay[1], self.stay[1]]]))
        seen = dist.Normal(self.mu, self.s).log_prob(value[:, None])

        def step(message: Any, row: Any) -> Any:
            return logsumexp(message[:, None] + rows, 0) + row, None

        return logsumexp(lax.scan(step, jnp.log(0.5) + seen[0], seen[1:])[0])


def hidden_markov(rng):
    """Staying probabilities, means and noise of a chain of 200 steps."""
    z = np.zeros(200, int)
    for t in range(1, 200):
        z[t] = z[t - 1] if rng.random() < (0.9, 0.8)[z[t - 1]] else 1 - z[t - 1]
    y = np.array([-1.0, 1.0])[z] + 0.7 * rng.standard_normal(200)

    def density(draw):
        stay = draw("stay", dist.Beta(jnp.full(2, 6.0), 2.0))
        mu = draw("mu", ordered(jnp.zeros(2), jnp.array([2.0, 1.0])))
        s = draw("s", dist.LogNormal(0.0, 0.5))
        if draw is vipl.sample:
            source = vipl.marginal(chain(stay, mu, s, 200), "y", vipl.inference.ForwardBackward())
        else:
            source = Chain(stay, mu, s, 200)
        draw("y", source)

    return density, y


def garch(rng):
    """Volatility from the last return and the last volatility."""
    y, var = np.zeros(400), 1.0
    for t in range(1, 400):
        var = 0.2 + 0.25 * y[t - 1] ** 2 + 0.6 * var
        y[t] = np.sqrt(var) * rng.standard_normal()

    def density(draw):
        mean = draw("mean", dist.Normal(0.0, 1.0))
        level = draw("level", dist.LogNormal(-1.0, 1.0))
        shock = draw("shock", dist.Uniform(0.0, 1.0))
        memory = draw("memory", dist.Uniform(0.0, 1.0 - shock))

        def step(var, before):
            var = level + shock * (before - mean) ** 2 + memory * var
            return var, var

        _, var = lax.scan(step, jnp.ones(()), jnp.asarray(y[:-1]))
        draw("y", dist.Normal(mean, jnp.sqrt(var)))

    return density, y[1:]


def autoregression(rng):
    """Five lags."""
    y = np.zeros(300)
    for t in range(5, 300):
        y[t] = 0.5 + np.array([0.5, -0.2, 0.1, 0.0, 0.2]) @ y[t - 5 : t][::-1] + 0.8 * rng.standard_normal()
    lags = jnp.stack([jnp.asarray(y[5 - k : 300 - k]) for k in range(1, 6)], 1)

    def density(draw):
        level = draw("level", dist.Normal(0.0, 2.0))
        phi = draw("phi", dist.Normal(jnp.zeros(5), 0.5))
        draw("y", dist.Normal(level + lags @ phi, draw("s", dist.HalfNormal(2.0))))

    return density, y[5:]


def gaussian_process(rng):
    """Amplitude, length and noise of a smooth function."""
    x = np.sort(rng.uniform(-3, 3, 25))
    y = np.sin(1.5 * x) + 0.3 * x + 0.3 * rng.standard_normal(25)

    def density(draw):
        amplitude = draw("amplitude", dist.LogNormal(0.0, 0.5))
        length = draw("length", dist.LogNormal(0.0, 0.5))
        noise = draw("noise", dist.LogNormal(-1.0, 0.5))
        cov = amplitude**2 * jnp.exp(-0.5 * ((x[:, None] - x) / length) ** 2) + (noise**2 + 1e-6) * jnp.eye(25)
        draw("y", dist.MultivariateNormal(jnp.zeros(25), cov))

    return density, y


def measurement_error(rng):
    """A slope, where the predictor is seen with noise of known size."""
    x = 1.0 + 1.5 * rng.standard_normal(60)
    seen, y = x + 0.7 * rng.standard_normal(60), 0.5 + 1.2 * x + 0.5 * rng.standard_normal(60)

    def density(draw):
        center, spread = draw("center", dist.Normal(0.0, 5.0)), draw("spread", dist.HalfNormal(5.0))
        x = center + spread * draw("x", dist.Normal(jnp.zeros(60), 1.0))
        a, b = draw("a", dist.Normal(0.0, 5.0)), draw("b", dist.Normal(0.0, 5.0))
        mean = jnp.concatenate([x, a + b * x])
        s = draw("s", dist.HalfNormal(2.0))
        draw("y", dist.Normal(mean, jnp.repeat(jnp.stack([jnp.full((), 0.7), s]), 60)))

    return density, np.concatenate([seen, y])


def item_response(rng):
    """Abilities of 40 persons, difficulties and discriminations of 10 items."""
    ability, difficulty, slope = rng.standard_normal(40), rng.standard_normal(10), np.exp(0.3 * rng.standard_normal(10))
    y = (rng.random((40, 10)) < 1 / (1 + np.exp(-slope * (ability[:, None] - difficulty)))).astype(int)

    def density(draw):
        ability = draw("ability", dist.Normal(jnp.zeros(40), 1.0))
        difficulty = draw("difficulty", dist.Normal(jnp.zeros(10), 2.0))
        slope = draw("slope", dist.LogNormal(jnp.zeros(10), 0.3))
        draw("y", dist.Bernoulli(logits=slope * (ability[:, None] - difficulty)))

    return density, y


def survival(rng):
    """Weibull times, of which those after the end of the study are censored."""
    x = rng.standard_normal((150, 3))
    times = np.exp(1.0 + x @ np.array([0.5, -0.3, 0.0])) * rng.weibull(1.5, 150)
    censored = times > 5.0

    def density(draw):
        a = draw("a", dist.Normal(0.0, 3.0))
        w = draw("w", dist.Normal(jnp.zeros(3), 1.0))
        shape = draw("shape", dist.LogNormal(0.0, 1.0))
        base = dist.Weibull(jnp.exp(a + jnp.asarray(x) @ w), shape)
        draw("y", dist.RightCensoredDistribution(base, jnp.asarray(censored)))

    return density, np.minimum(times, 5.0)


KINDS = {
    f.__name__: f
    for f in (
        mixture,
        hidden_markov,
        garch,
        autoregression,
        gaussian_process,
        measurement_error,
        item_response,
        survival,
    )
}


def analysis(kind):
    """One of `KINDS`."""
    density, y = KINDS[kind](np.random.default_rng(list(KINDS).index(kind)))

    def model():
        density(vipl.sample)

    model.__name__ = kind

    def peer():
        density(lambda name, d: numpyro.sample(name, d, obs=jnp.asarray(y) if name == "y" else None))

    data = {"y": jnp.asarray(y)}
    return Problem(vipl.gen(model)(), {"y": data} if kind == "hidden_markov" else data, peer)
