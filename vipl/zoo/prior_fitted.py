"""A prior-fitted network: amortized prediction by forward KL under the model.

    θ ~ Beta(1, 1),   x_1 ... x_5, y | θ ~ Bernoulli(θ),   min over φ of E_{(x, y) ~ p}[-log q_φ(y | x)].

Datasets are drawn from the model itself, and a network that sees x learns to predict y; θ is integrated out because
nobody looks at it. The loss is the mean of KL(p(y | x) || q(y | x)) plus a constant, the entropy of y given x. So the
best network is the posterior predictive, p(y = 1 | x) = (s + 1) / 7 with s = Σ x (Laplace's rule of succession), and
the least loss that entropy: s is uniform on 0 ... 5, so that it is (1/6) Σ_s h((s + 1) / 7) = 0.563765, with the binary
entropy h. The network sees the sequence and not s; its loss is summed over all 32 sequences.
"""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from flax import nnx

import vipl
from vipl.interop.flax import functional
from vipl.zoo import Number, Outcome

PAPER = "Müller, Hollmann, Pineda Arango, Grabocka and Hutter (2022), Transformers can do Bayesian inference"
OBJECTIVE = "forward KL under the model, from posterior predictive to network (the sleep phase)"

NUM_DATA, NUM_STEPS, NUM_DATASETS = 5, 1500, 256
START, network = functional(
    nnx.Sequential(nnx.Linear(5, 16, rngs=nnx.Rngs(0)), nnx.gelu, nnx.Linear(16, 1, rngs=nnx.Rngs(1)))
)


@vipl.gen
def model():
    """A dataset, and the next datum."""
    theta = vipl.sample("theta", dist.Beta(1.0, 1.0))
    vipl.sample("x", dist.Bernoulli(theta).expand([NUM_DATA]).to_event(1))
    vipl.sample("y", dist.Bernoulli(theta))


def logit(params, x):
    """What the network says of y, from a dataset."""
    return network(params)(x - 0.5)[0]


@vipl.gen
def predictive(params, x):
    """q(y | x)."""
    vipl.sample("y", dist.Bernoulli(logits=logit(params, x)))


@vipl.expectation
def likelihood(params):
    """E[log q(y | x)] under the model."""
    without_theta = vipl.marginal(model(), ("x", "y"))
    return vipl.objectives.sleep(without_theta, lambda data: predictive(params, data["x"]), "x")


def run(progress: bool = True) -> Outcome:
    """Fits the network to datasets that are drawn anew in each step."""
    optimizer = optax.adam(optax.cosine_decay_schedule(0.02, NUM_STEPS))
    options = {"num_steps": NUM_STEPS, "num_samples": NUM_DATASETS, "progress": progress}
    fit = vipl.fit(likelihood, START, optimizer, key=jax.random.key(0), **options)

    sequences = np.array(list(itertools.product([0, 1], repeat=NUM_DATA)))
    s = sequences.sum(1)
    law = 1.0 / (6 * np.array([math.comb(NUM_DATA, n) for n in s]))  # of a sequence: s is uniform
    exact = (s + 1) / (NUM_DATA + 2)
    reached = np.asarray(jax.nn.sigmoid(jax.vmap(lambda x: logit(fit.params, x))(jnp.asarray(sequences))), "float64")
    loss = -law @ (exact * np.log(reached) + (1 - exact) * np.log(1 - reached))
    least = -law @ (exact * np.log(exact) + (1 - exact) * np.log(1 - exact))
    numbers = [Number("loss, nats", float(loss), float(least), 1e-3)]
    for n in range(NUM_DATA + 1):
        numbers.append(Number(f"q(y = 1 | s = {n})", float(reached[s == n].mean()), (n + 1) / 7, 0.02))

    def draw(figure):
        left, right = figure.subplots(1, 2)
        left.plot(-np.asarray(fit.values), linewidth=0.5, label="loss while fitting")
        left.axhline(least, color="black", linestyle="--", label="least loss")
        left.set(xlabel="step", ylabel="nats", title="Loss")
        right.plot(s, reached, "o", alpha=0.5, label="network, each of 32 sequences")
        right.plot([0, NUM_DATA], [1 / 7, 6 / 7], "k--", label="(s + 1) / 7")
        right.set(xlabel="ones among the data, s", ylabel="probability of a one", title="Prediction")
        left.legend()
        right.legend()

    return Outcome(numbers, draw)
