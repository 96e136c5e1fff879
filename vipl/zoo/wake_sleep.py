"""Wake-sleep and reweighted wake-sleep, on a binary model whose posterior can be enumerated.

    z_i ~ Bernoulli(logits a_i), i < 3,   y_d | z ~ Bernoulli(logits (z W + b)_d), d < 4,   θ = (a, W, b),
    q(z | y) = Π_i Bernoulli(z_i; logits φ_yi),   φ a table of 16 x 3 numbers.

The data have the law p*(y) of a true θ, so that no log likelihood is above Σ_y p*(y) log p*(y); the reweighted phases
with K = 20 reach it, and wake-sleep (the ELBO's wake phase, K = 1) is 0.02 below after as many steps. As log q is a sum
over i, E[log q(z | y)] under a model p_θ is largest where q has the marginals m_yi = p_θ(z_i = 1 | y), for which it is
-Σ_y p(y) Σ_i H(m_yi), H the entropy of a Bernoulli: so ends the sleep phase, with p(y) that of the learned model, and,
but for a bias of order 1/K, the wake phase of the guide, with p(y) = p*(y).
All sums go over the 8 x 16 values of (z, y), in plain JAX.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import optax

import vipl
from vipl.zoo import Number, Outcome

PAPER = (
    "Hinton et al. (1995), The wake-sleep algorithm; Bornschein and Bengio (2015), Reweighted wake-sleep, eq. (8)-(10)"
)
OBJECTIVE = "the sleep phase, and the reweighted wake phases of model and guide"

TRUTH = {
    "prior": jnp.array([-0.5, 0.3, -1.0]),
    "weights": jnp.array([[3.0, -2.0, 0.0, 1.5], [2.5, 2.0, -3.0, 0.0], [0.0, 2.5, 2.0, -2.5]]),
    "bias": jnp.array([-2.0, -1.0, 0.5, 0.2]),
}
Z, Y = (jnp.stack(jnp.meshgrid(*[jnp.arange(2)] * n, indexing="ij"), -1).reshape(-1, n) for n in (3, 4))


@vipl.gen
def model(theta):
    """Three causes of four bits."""
    z = vipl.sample("z", dist.Bernoulli(logits=theta["prior"]).to_event(1))
    vipl.sample("y", dist.Bernoulli(logits=z @ theta["weights"] + theta["bias"]).to_event(1))


@vipl.gen
def guide(logits):
    """Independent causes."""
    vipl.sample("z", dist.Bernoulli(logits=logits).to_event(1))


def table(theta):
    """p(z, y) for all z and y, f[8, 16], in plain JAX."""
    prior = dist.Bernoulli(logits=theta["prior"]).log_prob(Z).sum(-1)
    bits = dist.Bernoulli(logits=Z @ theta["weights"] + theta["bias"]).log_prob(Y[:, None])
    return jnp.exp(prior[:, None] + bits.sum(-1).T)


JOINT = table(TRUTH)
P_Y = JOINT.sum(0)


def sleep(theta, phi):
    """The guide learns from 200 draws of the model."""

    def dream():
        return vipl.objectives.sleep(model(theta), lambda seen: guide(phi[seen["y"] @ jnp.array([8, 4, 2, 1])]), "y")

    return jnp.mean(jax.vmap(dream, axis_size=200)())


def wake(phase, theta, phi, num_particles):
    """A wake phase, averaged over the law of the data."""

    def row(y, logits):
        return phase(model(theta), guide(logits), {"y": y}, num_particles=num_particles)

    return P_Y @ jax.vmap(row)(Y, phi)


@vipl.expectation(has_aux=True)
def wake_sleep(params):
    """The model's phase has a gradient in theta alone, that of the guide in phi alone."""
    theta, phi = params
    return wake(vipl.objectives.wake_theta, theta, phi, 1) + sleep(theta, phi), log_likelihood(theta)


@vipl.expectation(has_aux=True)
def reweighted(params):
    """Both phases learn from the data."""
    theta, phi = params
    phases = vipl.objectives.wake_theta, vipl.objectives.wake_phi
    return sum(wake(phase, theta, phi, 20) for phase in phases), log_likelihood(theta)


def log_likelihood(theta):
    """Of the data, f[]."""
    return P_Y @ jnp.log(table(theta).sum(0))


def run(progress: bool = True) -> Outcome:
    """Fits by both; the tolerances are for the noise of 500 steps, and for the bias of K."""
    start, numbers, curves, points = jax.tree.map(lambda x: 0.3 * x, TRUTH), [], {}, {}
    for name, objective in {"wake-sleep": wake_sleep, "reweighted": reweighted}.items():
        adam = optax.adam(optax.cosine_decay_schedule(0.07, 500))
        params = (start, jnp.zeros((16, 3)))
        fit = vipl.fit(objective, params, adam, key=jax.random.key(0), num_steps=500, progress=progress)
        curves[name] = fit.metrics
        joint, q = table(fit.params[0]), jax.nn.sigmoid(fit.params[1])
        p_y, m = (P_Y if name == "reweighted" else joint.sum(0)), joint.T @ Z / joint.sum(0)[:, None]
        reached, best = (p_y @ (m * jnp.log(r) + (1 - m) * jnp.log1p(-r)).sum(1) for r in (q, m))
        numbers.append(Number(f"{name}: E[log q(z | y)]", float(reached), float(best), 0.005))
        points[name] = m, q, 300 * jnp.repeat(p_y[:, None], 3, 1)
    best = float(P_Y @ jnp.log(P_Y))
    numbers.append(Number("reweighted: log likelihood", float(curves["reweighted"][-1]), best, 0.004))

    def draw(figure):
        left, right = figure.subplots(1, 2)
        left.plot([0, 1], [0, 1], color="gray")
        for name, (m, q, size) in points.items():
            left.scatter(m, q, size, alpha=0.6, label=name)
            right.plot(curves[name], label=name)
        left.set(xlabel="p(z_i = 1 | y), exact", ylabel="q(z_i = 1 | y)", title="Guides (size: probability of y)")
        right.axhline(best, color="gray", label="negative entropy of the data")
        right.set(xlabel="step", ylabel="nats", title="Log likelihood of the learned model")
        left.legend()
        right.legend()

    return Outcome(numbers, draw)
