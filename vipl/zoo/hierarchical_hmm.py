"""Structured and hierarchical guides of the states of a hidden Markov model.

    z_1 ~ Bernoulli(1/2),   z_t | z_{t-1} ~ Bernoulli(0.9 if z_{t-1} else 0.1),   y_t | z_t ~ Normal(z_t, 1),   t <= 8.

The data say little and neighbours agree, so that paths that stay at 0 and paths that stay at 1 are both likely. Guides:

    product        Π_t q(z_t),
    hierarchical   Σ_k q(k) Π_t q(z_t | k),   k one of 2: an auxiliary choice, summed out of the density of the guide,
    structured     q(z_1) Π_t q(z_t | z_{t-1}), which contains the exact posterior.

References: all 256 paths are enumerated in plain JAX. log p(y) = log Σ_z p(z, y), which is the best bound of the
structured guide; its marginals are those of the posterior. The best bounds of the other two are maxima of
Σ_z q(z) (log p(z, y) - log q(z)), found from the same starts, -9.712912 and -9.049043: the largest to which 40 random
starts lead, too. Other local maxima are lower; a product that stays at 0, say, has -9.772302.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import optax

import vipl
from vipl.zoo import Number, Outcome

PAPER = "Ranganath, Tran and Blei (2016), Hierarchical variational models; Ghahramani and Jordan (1997), section 3.4"
OBJECTIVE = "evidence lower bounds: exact over the chain, and with the auxiliary choice of the guide summed out"

Y = jnp.array([0.9, 0.3, 0.7, 0.1, 0.8, 0.4, 0.6, 0.3])
T = Y.size
PATHS = jnp.stack(jnp.meshgrid(*[jnp.arange(2)] * T, indexing="ij"), -1).reshape(-1, T)


@vipl.gen
def model():
    """Two states that stay."""

    def step(previous, _):
        z = vipl.sample("z", dist.Bernoulli(jnp.array([0.1, 0.9, 0.5])[previous]))
        vipl.sample("y", dist.Normal(z, 1.0))
        return z, None

    jax.lax.scan(step, 2, None, length=T)


@vipl.gen
def product(phi):
    """Independent states."""
    vipl.sample("z", dist.Bernoulli(logits=phi["z"][0]).to_event(1), vipl.Enumerate())


@vipl.gen
def mixture(phi):
    """One product for each value of k."""
    k = vipl.sample("k", dist.Categorical(logits=phi["k"]), vipl.Enumerate())
    vipl.sample("z", dist.Bernoulli(logits=phi["z"][k]).to_event(1), vipl.Enumerate())


def hierarchical(phi):
    """The law of z alone: k is summed out."""
    return vipl.marginal(mixture(phi), "z", vipl.inference.Enumeration())


structured = vipl.guides.Markov(model(), {"y": Y})


def bound(guide):
    """The evidence lower bound of a guide; that of the chain is summed by pairs of neighbours."""
    if guide is structured:
        return vipl.expectation(lambda phi: vipl.objectives.elbo_with_chain(model(), guide(phi), {"y": Y}, "z"))
    return vipl.expectation(lambda phi: vipl.objectives.elbo(model(), guide(phi), {"y": Y}))


def log_joint():
    """The log densities log p(z, y) of all paths, f[256]."""
    steps = jnp.where(PATHS[:, 1:] == PATHS[:, :-1], jnp.log(0.9), jnp.log(0.1)).sum(1)
    return jnp.log(0.5) + steps + dist.Normal(PATHS, 1.0).log_prob(Y).sum(1)


@vipl.expectation(has_aux=True)
def by_enumeration(phi):
    """The bounds of several mixtures of products, in plain JAX: their sum, and each."""
    bounds = {}
    for name, p in phi.items():
        given_k = dist.Bernoulli(logits=p["z"][:, None]).log_prob(PATHS).sum(-1)
        log_q = jax.nn.logsumexp(jax.nn.log_softmax(p["k"])[:, None] + given_k, 0)
        bounds[name] = jnp.sum(jnp.exp(log_q) * (log_joint() - log_q))
    return sum(bounds.values()), bounds


def run(progress: bool = True) -> Outcome:
    """300 steps with exact gradients; the tolerances are for what is left to optimize."""
    key = jax.random.key(0)
    adam = optax.adam(optax.cosine_decay_schedule(0.2, 300))
    options = {"key": key, "num_steps": 300, "progress": progress}
    guides = {"product": product, "hierarchical": hierarchical, "structured": structured}
    starts = {"product": jnp.ones((1, T)), "hierarchical": jnp.array([[-1.0], [1.0]]) * jnp.ones(T)}
    starts = {name: {"k": jnp.zeros(len(z)), "z": z} for name, z in starts.items()}
    phi = starts | {"structured": structured.init(key)}
    fits = {name: vipl.fit(bound(guide), phi[name], adam, **options) for name, guide in guides.items()}

    exact = vipl.fit(by_enumeration, starts, adam, **options)
    log_p = log_joint()
    evidence = jax.nn.logsumexp(log_p)
    best = {name: values[-1] for name, values in exact.metrics.items()} | {"structured": evidence}
    numbers = [Number(f"{name}: bound", float(fits[name].values[-1]), float(best[name]), 0.002) for name in guides]
    chain = structured.marginals(fits["structured"].params)["z"][:, 1]
    marginals = jnp.exp(log_p - evidence) @ PATHS
    for t in (1, T):
        numbers.append(Number(f"structured: p(z_{t} = 1 | y)", float(chain[t - 1]), float(marginals[t - 1]), 0.002))

    def draw(figure):
        left, right = figure.subplots(1, 2)
        left.plot(list(guides), [fits[name].values[-1] for name in guides], "o", label="reached")
        left.plot(list(guides), [best[name] for name in guides], "k_", markersize=16, label="by enumeration")
        left.axhline(float(evidence), color="gray", label="log evidence")
        left.set(ylabel="nats", title="Evidence lower bounds", xlim=(-0.5, 2.5))
        steps = jnp.arange(1, T + 1)
        for name in starts:
            p = fits[name].params
            right.plot(steps, jax.nn.softmax(p["k"]) @ jax.nn.sigmoid(p["z"]), "o-", label=name)
        right.plot(steps, chain, "o-", label="structured")
        right.plot(steps, marginals, "k_", markersize=16, label="exact posterior")
        right.set(xlabel="step t", ylabel="q(z_t = 1)", title="Marginals", ylim=(0, 1.05))
        left.legend()
        right.legend(loc="lower left")

    return Outcome(numbers, draw)
