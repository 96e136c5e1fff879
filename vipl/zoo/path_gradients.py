"""A normalizing flow fitted by path gradients: the banana.

    z1 ~ Normal(0, 1),   z2 | z1 ~ Normal(z1², 0.5),
    q the law of (v1, v2 + c1 v1 + c2 v1²),   v ~ Normal(loc, diag(scale²)),
    max over loc, scale, c1 and c2 of E_q[log p(z) - log q(z)].

The bound is 0 at most, as p is normalized. The flow, an affine map and one coupling layer, has p in its family, and
reaches 0 without variance. The path gradient leaves out the score of q, whose mean is zero: it has no noise at q = p.

Without the coupling layer q is a diagonal Gaussian, with z2 ~ Normal(m, 0.5) for any law of z1 (the precision of z2
given z1 is 4), and m = E[z1²]. With z1 ~ Normal(0, s) the bound is log s + 1/2 - s²/2 - 4 s⁴, since Var(z1²) = 2 s⁴. It
is largest where 1 / s = s + 16 s³, at s = 0.469782: -0.560659.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import optax

import vipl
from vipl.zoo import Number, Outcome

PAPER = "Roeder, Wu and Duvenaud (2017), Sticking the landing; Vaitl et al. (2022), Gradients should stay on path"
OBJECTIVE = "the evidence lower bound, with a path gradient"

NUM_STEPS, NUM_SAMPLES, NUM_DRAWS = 1000, 16, 100_000
DIAGONAL = {"loc": jnp.array([0.3, -0.2]), "log_scale": jnp.zeros(2)}
FLOW = DIAGONAL | {"shift": jnp.zeros(2)}


class Coupling(dist.transforms.Transform):
    """(z1, z2) -> (z1, z2 + c1 z1 + c2 z1²), whose Jacobian is 1."""

    domain = codomain = dist.constraints.real_vector  # type: ignore[assignment]

    def __init__(self, shift):
        self.shift = shift

    def _add(self, z, sign):
        return z.at[1].add(sign * (self.shift[0] * z[0] + self.shift[1] * z[0] ** 2))

    def __call__(self, x):
        """Forwards."""
        return self._add(x, 1.0)

    def _inverse(self, y):
        return self._add(y, -1.0)

    def log_abs_det_jacobian(self, x, y, intermediates=None):
        """The log of 1."""
        return jnp.zeros(())

    def tree_flatten(self):
        """The coefficients are an array."""
        return (self.shift,), (("shift",), {})


@vipl.gen
def model():
    """The banana, as one vector: a factor changes the law of z2."""
    z = vipl.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    vipl.factor("curve", dist.Normal(z[0] ** 2, 0.5).log_prob(z[1]) - dist.Normal(0.0, 1.0).log_prob(z[1]))


@vipl.gen
def guide(phi):
    """An affine map of noise, and a coupling layer where there are coefficients for one."""
    base = dist.Normal(phi["loc"], jnp.exp(phi["log_scale"])).to_event(1)
    vipl.sample("z", dist.TransformedDistribution(base, [Coupling(phi["shift"])]) if "shift" in phi else base)


@vipl.expectation
def by_path(phi):
    """The bound, with the path gradient."""
    return vipl.objectives.sticking_the_landing(model(), guide(phi), {})


@vipl.expectation
def plain(phi):
    """The bound, with the whole gradient."""
    return vipl.objectives.elbo(model(), guide(phi), {})


def fit(start, progress):
    """Adam, with a rate that goes to zero."""
    options = {"key": jax.random.key(0), "num_steps": NUM_STEPS, "num_samples": NUM_SAMPLES, "progress": progress}
    return vipl.fit(by_path, start, optax.adam(optax.cosine_decay_schedule(0.05, NUM_STEPS)), **options)


def run(progress: bool = True) -> Outcome:
    """Fits a diagonal Gaussian and the flow, and evaluates values and gradients with 100,000 draws."""
    keys = jax.random.split(jax.random.key(1), NUM_DRAWS)

    def draws(objective, phi):
        return jax.jit(jax.vmap(lambda key, phi: objective.value_and_grad(key, phi), (0, None)))(keys, phi)

    diagonal, flow = fit(DIAGONAL, progress), fit(FLOW, progress)
    values, _ = draws(by_path, diagonal.params)
    of_flow, path = draws(by_path, flow.params)
    _, whole = draws(plain, flow.params)
    numbers = [
        Number("bound of the diagonal Gaussian, nats", float(values.mean()), -0.560659, 5 * float(values.std()) / 316),
        Number("bound of the flow, nats", float(of_flow.mean()), 0.0, 1e-4),
        Number("standard deviation of log weights", float(of_flow.std()), 0.0, 1e-2),
        Number("the same of the path gradient in c2", float(path["shift"][:, 1].std()), 0.0, 0.05),
        Number("the same of the whole gradient in c2", float(whole["shift"][:, 1].std()), 12**0.5, 0.2),
    ]

    def draw(figure):
        left, right = figure.subplots(1, 2)
        for name, fitted in (("diagonal Gaussian", diagonal), ("flow", flow)):
            z = jax.vmap(lambda key, fitted=fitted: guide(fitted.params).simulate(key).choices["z"])(keys[:500])
            left.plot(*z.T, ".", markersize=3, label=name)
            right.plot(fitted.values, linewidth=0.7, label=name)
        x = jnp.linspace(-3.0, 3.0, 100)
        left.plot(x, x**2, "k", linewidth=0.7, label="z2 = z1²")
        left.set(xlabel="z1", ylabel="z2", title="Draws of the guides")
        right.axhline(-0.560659, color="gray", linestyle="--", label="best diagonal Gaussian")
        right.set(xlabel="step", ylabel="nats", ylim=(-4.0, 1.0), title="Bound while fitting")
        left.legend()
        right.legend()

    return Outcome(numbers, draw)
