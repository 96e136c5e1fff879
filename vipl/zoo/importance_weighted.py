"""Importance-weighted bounds of one Gaussian latent variable, and how much of their gradients is signal.

    z ~ Normal(θ, 1),   x | z ~ Normal(z, 1),   x = 1.5,   q(z) = Normal(φ, 0.8),   θ = 0, φ = 0.5,
    L_K = E[log (1/K) Σ_k p(x, z_k) / q(z_k)],   z_k ~ q.

x ~ Normal(0, √2), so that log p(x) = -1.828012 in closed form. L_1 follows from Gaussian moments; L_2 to L_50 were
computed by Gauss-Hermite quadrature (K = 2) and by convolving the law of one weight on a grid.

The ratio of the mean of a gradient to its standard deviation grows with K as √K in the model's θ, and falls as 1/√K in
the guide's φ (Rainforth et al., 2018, theorem 1): slopes of 1/2 and -1/2 on logarithmic axes, in the limit. The doubly
reparametrized gradient is another estimate of the same derivative, and has the slope 1/2 in φ, too (Tucker et al.,
2019, section 6). Slopes are taken from K = 10 to 50, where they are not yet those of the limit.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

import vipl
from vipl.zoo import Number, Outcome

PAPER = "Burda, Grosse and Salakhutdinov (2016), Importance weighted autoencoders, eq. (8)"
OBJECTIVE = "the importance-weighted bounds L_K, K = 1 to 50, and their doubly reparametrized gradient"

REFERENCE = {1: -1.907082, 2: -1.860658, 5: -1.839758, 10: -1.833699, 50: -1.829122}
LOG_EVIDENCE = -1.828012
NUM_SETS = 100_000


@vipl.gen
def model(theta):
    """One latent, one datum."""
    z = vipl.sample("z", dist.Normal(theta, 1.0))
    vipl.sample("x", dist.Normal(z, 1.0))


@vipl.gen
def guide(phi):
    """Too narrow, and beside the posterior Normal(0.75, 0.71)."""
    vipl.sample("z", dist.Normal(phi, 0.8))


def bound(num_particles: int, objective=vipl.objectives.iwelbo) -> vipl.Expectation:
    """L_K as an objective of (θ, φ); which objective decides the gradient alone."""
    return vipl.expectation(
        lambda params: objective(model(params[0]), guide(params[1]), {"x": 1.5}, num_particles=num_particles)
    )


def draws(fn):
    """What `fn` of a key gives for NUM_SETS keys."""
    return jax.jit(jax.vmap(fn))(jax.random.split(jax.random.key(0), NUM_SETS))


def gradients(objective: vipl.Expectation):
    """Gradients in θ and in φ, f[NUM_SETS] each."""
    return draws(lambda key: objective.value_and_grad(key, (0.0, 0.5))[1])


def run(progress: bool = True) -> Outcome:
    """Estimates each bound with 100,000 sets of particles; the tolerance is 5 standard errors."""
    numbers, in_model, in_guide, cured = [], {}, {}, {}
    for k, reference in REFERENCE.items():
        value = draws(lambda key, k=k: bound(k).estimate(key, (0.0, 0.5)))
        numbers.append(Number(f"L_{k}", float(value.mean()), reference, 5 * float(value.std()) / NUM_SETS**0.5))
    for k in (10, 50):
        theta, phi = gradients(bound(k))
        _, by_path = gradients(bound(k, vipl.objectives.doubly_reparametrized))
        in_model[k] = abs(theta.mean()) / theta.std()
        in_guide[k] = abs(by_path.mean()) / phi.std()  # both have this mean, by_path with less noise
        cured[k] = abs(by_path.mean()) / by_path.std()
    ratios = {"model": (in_model, 0.5), "guide": (in_guide, -0.5), "guide, doubly reparametrized": (cured, 0.5)}
    for name, (of_k, slope) in ratios.items():
        reached = float(jnp.log(of_k[50] / of_k[10]) / jnp.log(5.0))
        numbers.append(Number(f"slope of {name}", reached, slope, 0.05))

    def draw(figure):
        left, right = figure.subplots(1, 2)
        left.plot(list(REFERENCE), [n.reached for n in numbers[: len(REFERENCE)]], "o", label="reached")
        left.plot(list(REFERENCE), list(REFERENCE.values()), "k_", markersize=16, label="by quadrature")
        left.axhline(LOG_EVIDENCE, color="gray", label="log evidence")
        left.set(xscale="log", xlabel="particles K", ylabel="nats", title="Importance-weighted bounds")
        left.legend()
        for (name, (of_k, _)), style in zip(ratios.items(), ("o-", "o-", "s--"), strict=True):
            right.plot(list(of_k), [float(r) for r in of_k.values()], style, label=name)
        right.set(yscale="log", xlabel="particles K", ylabel="|mean| / standard deviation")
        right.set(xticks=list(cured), title="Signal to noise of gradients")
        right.legend(loc="center left")

    return Outcome(numbers, draw)
