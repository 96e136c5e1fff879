"""A variational autoencoder with a vector-quantized code, the codes summed over.

    k ~ Uniform{1..8},   x | k ~ Normal(decoder(e_k), σ I) in R²,   q(k | x) in proportion to exp(-|encoder(x) - e_k|²).

e_k in R² is the codebook. All 8 codes are enumerated, so that neither straight-through gradients nor a commitment
loss are needed: the bound of each x and its gradients in codebook, encoder and decoder are exact.

The data are 8 clusters on a circle, 25 points each. The decoder, a network, can put the means anywhere: the bound is
largest at the maximum of the likelihood of a mixture of Gaussians with equal weights and one σ, less what the encoder
misses. The reference is the end of that mixture's expectation maximization in closed form, in NumPy, from the centres:
r_nk in proportion to Normal(x_n; μ_k, σ I), μ_k = Σ_n r_nk x_n / Σ_n r_nk, σ² = mean_n Σ_k r_nk |x_n - μ_k|² / 2.
The quantization error is the mean squared distance from x to the next decoded code.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from flax import nnx

import vipl
from vipl.interop.flax import functional
from vipl.zoo import Number, Outcome

PAPER = "van den Oord et al. (2017), Neural discrete representation learning; Sonderby et al. (2017), for soft codes"
OBJECTIVE = "the evidence lower bound per datum, summed over the codes"

RNG, K = np.random.RandomState(0), 8
CENTRES = 2 * np.stack([np.cos(np.arange(K) * np.pi / 4), np.sin(np.arange(K) * np.pi / 4)], 1)
X = (np.repeat(CENTRES, 25, 0) + 0.3 * RNG.randn(200, 2)).astype("float32")


def network(seed):
    """One hidden layer."""
    rngs = nnx.Rngs(seed)
    return functional(nnx.Sequential(nnx.Linear(2, 32, rngs=rngs), nnx.tanh, nnx.Linear(32, 2, rngs=rngs)))


(encoder, encode), (decoder, decode) = network(0), network(1)


@vipl.gen
def model(theta):
    """A code, and a point around what the decoder makes of it."""
    k = vipl.sample("k", dist.Categorical(jnp.full(K, 1 / K)))
    means = decode(theta["decoder"])(theta["codes"])
    vipl.sample("x", dist.Normal(means[k], jnp.exp(theta["log_s"])).to_event(1))


@vipl.gen
def guide(theta, x):
    """Codes near to what the encoder makes of x are likely."""
    distance = jnp.sum((encode(theta["encoder"])(x) - theta["codes"]) ** 2, 1)
    vipl.sample("k", dist.Categorical(logits=-distance), vipl.Enumerate(all_possible=True))


@vipl.expectation
def bound(theta, x):
    """The mean over the rows."""
    return jnp.mean(jax.vmap(lambda row: vipl.objectives.elbo(model(theta), guide(theta, row), {"x": row}))(x))


def closed_form():
    """Log likelihood per datum, σ and means of the best mixture."""
    means, s = CENTRES, 0.5
    for _ in range(200):
        square = ((X[:, None] - means) ** 2).sum(-1)
        joint = np.exp(-square / (2 * s**2)) / (2 * np.pi * s**2 * K)
        r = joint / joint.sum(1, keepdims=True)
        means, s = r.T @ X / r.sum(0)[:, None], np.sqrt(np.mean((r * square).sum(1)) / 2)
    return np.log(joint.sum(1)).mean(), s, means


def error(means):
    """Mean squared distance to the next mean."""
    return float(np.mean(((X[:, None] - means) ** 2).sum(-1).min(1)))


def run(progress: bool = True) -> Outcome:
    """No noise; the tolerances are what encoder and decoder leave after 1500 steps."""
    first = X[::25]  # the codebook begins at the codes of one datum of each cluster
    theta = {"encoder": encoder, "decoder": decoder, "codes": encode(encoder)(first), "log_s": jnp.zeros(())}
    adam = optax.adam(optax.cosine_decay_schedule(0.02, 1500))
    fit = vipl.fit(bound, theta, adam, key=jax.random.key(0), data=jnp.asarray(X), num_steps=1500, progress=progress)
    theta, (log_likelihood, s, best) = fit.params, closed_form()
    means = np.asarray(decode(theta["decoder"])(theta["codes"]))
    numbers = [
        Number("bound per datum", float(fit.values[-1]), float(log_likelihood), 0.003),
        Number("noise", float(jnp.exp(theta["log_s"])), float(s), 0.002),
        Number("quantization error", error(means), error(best), 0.002),
    ]

    def draw(figure):
        left, right = figure.subplots(1, 2)
        z = encode(theta["encoder"])(X)
        code = np.argmin(((np.asarray(z)[:, None] - np.asarray(theta["codes"])) ** 2).sum(-1), 1)
        for axes, points, centres in ((left, X, means), (right, z, theta["codes"])):
            axes.scatter(*np.asarray(points).T, c=code, cmap="tab10", s=8)
            axes.plot(*np.asarray(centres).T, "kx", markersize=9)
        left.plot(*best.T, "o", mfc="none", color="gray", markersize=14, label="best mixture")
        left.set(xlabel="x_1", ylabel="x_2", title="Data by code; decoded codes (x)")
        right.set(xlabel="z_1", ylabel="z_2", title="Encoded data; the codebook (x)")
        left.legend()

    return Outcome(numbers, draw)
