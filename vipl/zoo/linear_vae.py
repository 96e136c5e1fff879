"""A variational autoencoder with a linear decoder is probabilistic PCA.

    z ~ Normal(0, I) in 2 dimensions,   x | z ~ Normal(W z + b, s² I) in 5,   q(z | x) = Normal(V x + c, T Tᵀ),
    max over (W, b, s, V, c, T) of the mean over the rows of E_q[log p(x, z) - log q(z | x)].

The likelihood of the best (W, b, s) is known: s² is the mean of the three smallest eigenvalues λ of the covariance of
the rows (Tipping and Bishop, 1999, eq. 8), and the log likelihood of a row -(5 log 2π + Σ log λ' + 5) / 2, where λ' are
the two largest eigenvalues and three times s². The posterior of z is Gaussian, its mean affine in x and its covariance
the same for all rows, so that the best bound is the log likelihood itself, without noise.
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

PAPER = "Kingma and Welling (2014), Auto-encoding variational Bayes; Lucas et al. (2019), Don't blame the ELBO!"
OBJECTIVE = "the evidence lower bound, with a path gradient"

R = np.random.RandomState(0)
A = R.randn(5, 2)
X = R.randn(200, 2) @ A.T + 0.5 * R.randn(200, 5)
NUM_STEPS = 600

encoder, encode = functional(nnx.Linear(5, 2, rngs=nnx.Rngs(0)))
decoder, decode = functional(nnx.Linear(2, 5, rngs=nnx.Rngs(1)))
START = {"encoder": encoder, "decoder": decoder, "tril": jnp.eye(2), "log_s": jnp.zeros(())}


@vipl.gen
def model(params):
    """One row."""
    z = vipl.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    vipl.sample("x", dist.Normal(decode(params["decoder"])(z), jnp.exp(params["log_s"])).to_event(1))


@vipl.gen
def guide(params, x):
    """The latent vector of one row."""
    vipl.sample("z", dist.MultivariateNormal(encode(params["encoder"])(x), scale_tril=jnp.tril(params["tril"])))


@vipl.expectation
def bound(params, rows):
    """The bound per row; its gradient is without noise where the guide is the posterior."""

    def of_row(x):
        return vipl.objectives.sticking_the_landing(model(params), guide(params, x), {"x": x})

    return jnp.mean(jax.vmap(of_row)(rows))


def exact() -> tuple[float, float]:
    """The log likelihood of a row under probabilistic PCA, and its noise variance."""
    largest, smallest = np.split(np.linalg.eigvalsh(np.cov(X.T, ddof=0))[::-1], [2])
    variance = np.mean(smallest)
    log_det = np.sum(np.log(largest)) + 3 * np.log(variance)
    return float(-(5 * np.log(2 * np.pi) + log_det + 5) / 2), float(variance)


def run(progress: bool = True) -> Outcome:
    """Fits all rows at once by Adam."""
    key, rows = jax.random.key(0), jnp.asarray(X, "float32")
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, NUM_STEPS))
    fit = vipl.fit(bound, START, optimizer, key=key, data=rows, num_steps=NUM_STEPS, progress=progress)
    log_likelihood, variance = exact()
    reached = float(bound.estimate(key, fit.params, rows, num_samples=100))
    numbers = [
        Number("bound per row, nats", reached, log_likelihood, 2e-3),
        Number("noise variance", float(jnp.exp(2 * fit.params["log_s"])), variance, 2e-3),
    ]

    def draw(figure):
        left, right = figure.subplots(1, 2)
        left.plot(fit.values, linewidth=0.5, label="bound while fitting")
        left.axhline(log_likelihood, color="black", linestyle="--", label="probabilistic PCA")
        left.set(xlabel="step", ylabel="nats per row", ylim=(-9.0, -6.5), title="Bound")
        left.legend()
        columns = np.asarray(fit.params["decoder"]["kernel"])
        axes = np.linalg.svd(X - X.mean(0), full_matrices=False)[2][:2]
        right.plot(*(axes @ (X - X.mean(0)).T), ".", color="gray", alpha=0.5, label="rows")
        for column, name in zip(columns @ axes.T, ("first", "second"), strict=True):
            right.plot([0, column[0]], [0, column[1]], linewidth=2, label=f"{name} column of W")
        right.set(xlabel="first principal axis", ylabel="second principal axis", title="Decoder", aspect="equal")
        right.legend()

    return Outcome(numbers, draw)
