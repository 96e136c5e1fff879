"""Variational inference with a pre-trained score as the prior, where everything is Gaussian.

    x ~ Normal(m, C) in R³,   y | x ~ Normal(A x, 0.2² I) in R²,   where the prior of x is known by draws alone.

Pre-training: s(x) = W x + b minimizes E|s(x + τ e) + e / τ|² with e ~ Normal(0, I), τ = 0.3 (denoising
score matching). The best s is the score of the smoothed prior Normal(m, S), S = C + τ² I: W = -S^-1 and b = S^-1 m.
Its loss is

    E|e|² / τ² - E|s|² = 3 / τ² - tr S^-1 = 28.503,   as E[sᵀe] / τ = tr W = -E|s|² by Stein's identity.

Inference: q = Normal(μ, L Lᵀ) follows the reparametrized gradient of E[log p(y | x) + log p(x) - log q(x)], in which
s(x) stands for the gradient of log p(x), which has no density. With the exact s the best q is the posterior under the
prior Normal(m, S): its precision is S^-1 + AᵀA / 0.04, and its mean solves (S^-1 + AᵀA / 0.04) μ = S^-1 m + Aᵀy / 0.04.
Without the score the precision AᵀA / 0.04 is singular, and q widens without end. All references are computed below.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import optax

import vipl
from vipl.zoo import Number, Outcome

PAPER = (
    "Vincent (2011), A connection between score matching and denoising autoencoders, eq. (9); "
    "Graikos et al. (2022), Diffusion models as plug-and-play priors"
)
OBJECTIVE = "denoising score matching, then an evidence lower bound whose prior is known by its score"

M, ROOT = jnp.array([0.5, -1.0, 0.3]), jnp.array([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [-0.4, 0.3, 0.7]])
A, Y, TAU, NOISE = jnp.array([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]]), jnp.array([1.2, -0.7]), 0.3, 0.2


@vipl.gen
def prior():
    """Gives draws for the pre-training; its density is not used."""
    vipl.sample("x", dist.MultivariateNormal(M, scale_tril=ROOT))


@vipl.gen
def likelihood(x):
    """The data, given x."""
    vipl.sample("y", dist.Normal(A @ x, NOISE).to_event(1))


def root_of(phi):
    """The triangular L."""
    return jnp.tril(phi["root"], -1) + jnp.diag(jnp.exp(jnp.diag(phi["root"])))


@vipl.gen
def guide(phi):
    """A Gaussian with any covariance."""
    vipl.sample("x", dist.MultivariateNormal(phi["mean"], scale_tril=root_of(phi)))


def score(net, x):
    """The network: one linear layer."""
    return net["w"] @ x + net["b"]


@vipl.expectation
def denoising(net):
    """The loss of 500 noisy draws."""

    def one():
        x = prior().simulate().choices["x"]
        e = vipl.sample("e", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
        return jnp.sum((score(net, x + TAU * e) + e / TAU) ** 2)

    return jnp.mean(jax.vmap(one, axis_size=500)())


@vipl.expectation
def bound(phi, net):
    """E[log p(y | x) + s(x)ᵀx - log q(x)] with s(x) held: the gradient is that of the bound, the value is not."""

    def one():
        q = guide(phi).simulate()
        x = q.choices["x"]
        log_prior = jax.lax.stop_gradient(score(net, x)) @ x
        return likelihood(x).assess({"y": Y}).log_prob + log_prior - q.log_prob

    return jnp.mean(jax.vmap(one, axis_size=100)())


def run(progress: bool = True) -> Outcome:
    """Pre-trains, freezes the score, and fits; the tolerances are for the noise of both."""
    key = jax.random.key(0)
    adam = optax.adam(optax.cosine_decay_schedule(0.05, 600))
    options = {"key": key, "num_steps": 600, "progress": progress}
    pretrained = vipl.fit(denoising, {"w": jnp.zeros((3, 3)), "b": jnp.zeros(3)}, adam, maximize=False, **options)
    net, phi = pretrained.params, {"mean": jnp.zeros(3), "root": jnp.zeros((3, 3))}
    phi = vipl.fit(bound, phi, adam, data=net, **options).params

    inverse = jnp.linalg.inv(ROOT @ ROOT.T + TAU**2 * jnp.eye(3))
    covariance = jnp.linalg.inv(inverse + A.T @ A / NOISE**2)
    mean, sd = covariance @ (inverse @ M + A.T @ Y / NOISE**2), jnp.sqrt(jnp.diag(covariance))
    q_covariance = root_of(phi) @ root_of(phi).T
    q_sd = jnp.sqrt(jnp.diag(q_covariance))
    last, loss = pretrained.values[-200:], 3 / TAU**2 - jnp.trace(inverse)
    numbers = [
        Number("loss of the score", float(last.mean()), float(loss), 5 * float(last.std()) / 200**0.5),
        Number("largest error of W", float(jnp.max(jnp.abs(net["w"] + inverse))), 0.0, 0.05),
    ]
    for i in range(3):
        numbers.append(Number(f"posterior mean of x_{i}", float(phi["mean"][i]), float(mean[i]), 0.04))
        numbers.append(Number(f"posterior sd of x_{i}", float(q_sd[i]), float(sd[i]), 0.03))

    def draw(figure):
        left, right = figure.subplots(1, 2)
        left.plot([-2.5, 2.5], [-2.5, 2.5], color="gray")
        left.plot((-inverse).ravel(), net["w"].ravel(), "o", label="entries of W")
        left.plot(inverse @ M, net["b"], "x", label="entries of b")
        left.set(xlabel="exact", ylabel="learned", title="The score of the prior")
        angle = jnp.linspace(0, 2 * jnp.pi, 100)
        circle = 2 * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
        ellipses = {
            "prior": (M, ROOT @ ROOT.T),
            "exact posterior": (mean, covariance),
            "q": (phi["mean"], q_covariance),
        }
        for (name, (m, c)), style in zip(ellipses.items(), ("k:", "k-", "C1--"), strict=True):
            right.plot(*(m[1:, None] + jnp.linalg.cholesky(c[1:, 1:]) @ circle), style, label=name)
        right.set(xlabel="x_1", ylabel="x_2", title="Two standard deviations", ylim=(-2.7, 2.2))
        left.legend()
        right.legend(loc="lower right")

    return Outcome(numbers, draw)
