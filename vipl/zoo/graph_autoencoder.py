"""Variational graph auto-encoder on a planted graph.

    z_i ~ Normal(0, I) in the plane,   A_ij | z ~ Bernoulli(logits=2 z_iᵀ z_j),  i < j,
    q(z | A) = Π_i Normal(z_i; μ_i, σ_i),   (μ, log σ) = Â tanh(Â W_1) W_2,
with Â the adjacency matrix, normalized by degrees. A tenth of the pairs is held out: of them A shows no edge to the
encoder, and the likelihood does not count them.

References: the graph has two blocks of 20 nodes, with edges of probability 0.8 inside and 0.1 across. No score of
held-out pairs has a higher expected area under the ROC curve than the block model's own, 1 inside and 0 across; with
s_1 and s_0 the shares of edges and of others that are inside, it is ½ (1 + s_1 - s_0), counted below for this graph.
The signs of μ along its main axis are the blocks. An encoder that does not see the graph has an area of about 0.5.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax

import vipl
from vipl.zoo import Number, Outcome

PAPER = "Kipf and Welling (2016), Variational graph auto-encoders, eq. (1)-(3)"
OBJECTIVE = "the evidence lower bound of the pairs of nodes that are seen"

NODES, HIDDEN = 40, 16
BLOCKS = np.arange(NODES) // 20
FIRST, SECOND = np.triu_indices(NODES, 1)
RNG = np.random.RandomState(0)
EDGES = RNG.rand(len(FIRST)) < np.where(BLOCKS[FIRST] == BLOCKS[SECOND], 0.8, 0.1)
SEEN = RNG.rand(len(FIRST)) > 0.1


def smoother():
    """f[n, n], Â = D^-½ (A + I) D^-½ of the edges that are seen."""
    a = np.eye(NODES)
    a[FIRST, SECOND] = a[SECOND, FIRST] = EDGES & SEEN
    degrees = a.sum(1)
    return jnp.float32(a / np.sqrt(degrees[:, None] * degrees))


@vipl.gen
def model():
    """Pairs that are held out have no weight."""
    z = jax.vmap(lambda: vipl.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1)), axis_size=NODES)()
    logits = 2.0 * jnp.sum(z[FIRST] * z[SECOND], -1)
    vipl.sample("edges", dist.Bernoulli(logits=logits).mask(jnp.asarray(SEEN)).to_event(1))


def encode(params):
    """A graph convolutional network of two layers; the features are the nodes themselves."""
    a = smoother()
    mean, log_sd = jnp.split(a @ jnp.tanh(a @ params["first"]) @ params["second"], 2, axis=1)
    return mean, log_sd - 1.0


@vipl.gen
def guide(params):
    """Independent nodes given the graph."""
    jax.vmap(lambda m, s: vipl.sample("z", dist.Normal(m, jnp.exp(s)).to_event(1)))(*encode(params))


@vipl.expectation
def bound(params):
    """The evidence lower bound."""
    return vipl.objectives.elbo_with_kl(model(), guide(params), {"edges": EDGES.astype(np.int32)})


def area(scores, edges):
    """The area under the ROC curve: the probability that an edge has a higher score than a pair without; ties are ½."""
    difference = scores[edges][:, None] - scores[~edges]
    return float(np.mean((difference > 0) + 0.5 * (difference == 0)))


def run(progress: bool = True) -> Outcome:
    """400 steps of Adam; 0.03 of the area is what the noise in z costs in the order of pairs."""
    key = jax.random.key(0)
    start = {
        "first": jax.random.normal(key, (NODES, HIDDEN)),
        "second": 0.5 * jax.random.normal(jax.random.key(1), (HIDDEN, 4)),
    }
    adam = optax.adam(optax.cosine_decay_schedule(0.03, 400))
    fit = vipl.fit(bound, start, adam, key=key, num_steps=400, num_samples=4, progress=progress)
    z = jax.vmap(lambda key: guide(fit.params).simulate(key).choices["z"])(jax.random.split(key, 500))
    probabilities = np.asarray(jax.nn.sigmoid(2.0 * jnp.sum(z[:, FIRST] * z[:, SECOND], -1)).mean(0))

    held, inside = ~SEEN, BLOCKS[FIRST] == BLOCKS[SECOND]
    mean = np.asarray(encode(fit.params)[0])
    side = mean @ np.linalg.eigh(mean.T @ mean)[1][:, -1] > 0
    right = np.mean(side == BLOCKS)
    best = 0.5 * (1 + inside[held & EDGES].mean() - inside[held & ~EDGES].mean())
    numbers = [
        Number("held-out pairs: area under the curve", area(probabilities[held], EDGES[held]), best, 0.03),
        Number("share of nodes in their block", float(max(right, 1 - right)), 1.0, 0.0),
    ]

    def draw(figure):
        left, right = figure.subplots(1, 2)
        for i, j in zip(FIRST[EDGES & SEEN], SECOND[EDGES & SEEN], strict=True):
            left.plot(*mean[[i, j]].T, color="gray", lw=0.2)
        left.scatter(*mean.T, c=BLOCKS, cmap="coolwarm", zorder=2)
        left.set(xlabel="first latent", ylabel="second latent", title="Posterior means; colors are blocks")
        for name, chosen in (("edges", EDGES), ("no edges", ~EDGES)):
            right.hist(probabilities[held & chosen], np.linspace(0, 1, 21), alpha=0.5, label=name)
        right.set(xlabel="predicted probability of an edge", ylabel="held-out pairs", title="Held-out pairs")
        right.legend()

    return Outcome(numbers, draw)
