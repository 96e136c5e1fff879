"""Gradients through a rejection sampler: Gamma and Dirichlet posteriors that are conjugate.

    rate ~ Gamma(2, 1),   n_i | rate ~ Poisson(rate),   n = (3, 1, 4),   q(rate) = Gamma(a, b);
    p ~ Dirichlet(1, 1, 1),   ten draws of Categorical(p) with counts (3, 5, 2),   q(p) = Dirichlet(a), drawn as g / Σ g
    with g_i ~ Gamma(a_i, 1).

The noise of a Gamma draw is what Marsaglia and Tsang's sampler accepts, so that its law depends on the shape a. The
gradient is the pathwise one plus the score of the accepted noise.

The posteriors are Gamma(2 + 8, 1 + 3) and Dirichlet(4, 6, 3). Their bounds are the log evidence in closed form,
log Γ(10) - log Γ(2) - 10 log 4 - Σ log n_i! = -6.030929, and log B(4, 6, 3) - log B(1, 1, 1) = -12.021669. The
derivative in log a where the fit begins, at a = 1 and mean 1, is that of the bound of the counts in closed form, by
E[log rate] = ψ(a) - log b: 5.804. Without the score of the noise it would be 8.1.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import optax
from jax.scipy.special import digamma, gammaln

import vipl
from vipl import RejectionReparam
from vipl.zoo import Number, Outcome

PAPER = "Naesseth, Ruiz, Linderman and Blei (2017), Reparameterization gradients through acceptance-rejection sampling"
OBJECTIVE = "the evidence lower bound"

EVENTS = jnp.array([3, 1, 4])
COUNTS = jnp.array([3, 5, 2])
NUM_STEPS, NUM_SAMPLES = 400, 8
START = {"a": jnp.zeros(()), "mean": jnp.zeros(())}


@vipl.gen
def events():
    """Counts of one rate."""
    rate = vipl.sample("rate", dist.Gamma(2.0, 1.0))
    vipl.sample("n", dist.Poisson(rate).expand([3]).to_event(1))


@vipl.gen
def rate_guide(phi):
    """Gamma with any shape and mean, both given by their logarithms."""
    phi = jax.tree.map(jnp.exp, phi)
    vipl.sample("rate", dist.Gamma(phi["a"], phi["a"] / phi["mean"]), RejectionReparam())


@vipl.expectation
def gamma_bound(phi):
    """The bound of the counts."""
    return vipl.objectives.sticking_the_landing(events(), rate_guide(phi), {"n": EVENTS})


@vipl.gen
def sequence():
    """Ten draws from three categories."""
    p = vipl.sample("p", dist.Dirichlet(jnp.ones(3)))
    vipl.sample("k", dist.CategoricalProbs(p).expand([10]).to_event(1))


@vipl.expectation
def dirichlet_bound(log_a):
    """The bound of the sequence: Gammas are drawn, and their shares have the density of a Dirichlet.

    The parameters in that density are held, as in `sticking_the_landing`.
    """
    a = jnp.exp(log_a)
    g = vipl.sample("g", dist.Gamma(a, 1.0).to_event(1), RejectionReparam(boost=4))
    p = g / jnp.sum(g)
    k = jnp.repeat(jnp.arange(3), COUNTS, total_repeat_length=10)
    return sequence().assess({"p": p, "k": k}).log_prob - dist.Dirichlet(jax.lax.stop_gradient(a)).log_prob(p)


def fit(objective, start, progress):
    """Adam, with a rate that goes to zero."""
    options = {"key": jax.random.key(0), "num_steps": NUM_STEPS, "num_samples": NUM_SAMPLES, "progress": progress}
    return vipl.fit(objective, start, optax.adam(optax.cosine_decay_schedule(0.1, NUM_STEPS)), **options)


def exact_bound(log_a):
    """The bound of the counts at a mean of 1, in closed form."""
    a = b = jnp.exp(log_a)
    log_rate, entropy = digamma(a) - jnp.log(b), a - jnp.log(b) + gammaln(a) + (1 - a) * digamma(a)
    return (1 + jnp.sum(EVENTS)) * log_rate - 4.0 - jnp.sum(gammaln(EVENTS + 1.0)) + entropy


def run(progress: bool = True) -> Outcome:
    """Fits both guides, and evaluates the bounds with 1000 draws, the derivative with 50,000."""
    rate, shares = fit(gamma_bound, START, progress), fit(dirichlet_bound, jnp.zeros(3), progress)
    a, mean = float(jnp.exp(rate.params["a"])), float(jnp.exp(rate.params["mean"]))
    after, key = COUNTS + 1.0, jax.random.key(1)
    of_counts = gammaln(10.0) - 10 * jnp.log(4.0) - jnp.sum(gammaln(EVENTS + 1.0))
    of_sequence = jnp.sum(gammaln(after)) - gammaln(jnp.sum(after)) + gammaln(3.0)
    slope = jax.jit(jax.vmap(lambda key: gamma_bound.value_and_grad(key, START)[1]["a"]))(jax.random.split(key, 50_000))
    reached = [gamma_bound.estimate(key, rate.params, num_samples=1000)]
    reached.append(dirichlet_bound.estimate(key, shares.params, num_samples=1000))
    numbers = [
        Number("derivative at the start", float(slope.mean()), float(jax.grad(exact_bound)(0.0)), 0.7),
        Number("shape of the Gamma", a, 10.0, 0.1),
        Number("rate of the Gamma", a / mean, 4.0, 0.04),
        Number("bound of the counts, nats", float(reached[0]), float(of_counts), 5e-4),
        Number("bound of the sequence, nats", float(reached[1]), float(of_sequence), 5e-4),
    ]

    def draw(figure):
        left, right = figure.subplots(1, 2)
        x = jnp.linspace(0.01, 6.0, 200)
        left.plot(x, jnp.exp(dist.Gamma(a, a / mean).log_prob(x)), label="reached")
        left.plot(x, jnp.exp(dist.Gamma(10.0, 4.0).log_prob(x)), "k--", label="posterior Gamma(10, 4)")
        left.set(xlabel="rate", ylabel="density", title="Rate of the counts")
        left.legend()
        right.bar(jnp.arange(3) - 0.2, jnp.exp(shares.params), 0.4, label="reached")
        right.bar(jnp.arange(3) + 0.2, after, 0.4, label="posterior Dirichlet(4, 6, 3)")
        right.set(xticks=range(3), xlabel="category", ylabel="parameter a", title="Shares of the sequence")
        right.legend()

    return Outcome(numbers, draw)
