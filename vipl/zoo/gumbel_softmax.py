"""Gumbel-softmax, straight-through and ReinMax beside unbiased estimators: a semi-supervised autoencoder of digits.

    y ~ Uniform{0..9},   z ~ Normal(0, I) in R^4,   x | y, z ~ Bernoulli(logits decoder(y, z)), 64 pixels,
    q(z | x) = Normal,   q(y | x) = Categorical(π(x)),   one linear layer for both,
    L = mean over images of E_q[log p(x | y, z)] - KL(q(y | x), p(y)) - KL(q(z | x), p(z)),
and for 100 images whose y is known: the same with that y, and the log probability that q gives to it.

References: given z, the sum over y is exact. Each estimator's gradient of L in the biases of π is compared with that
sum's, at the same draw of z: an unbiased one differs from it by noise of mean 0. The number is the largest mean
difference of 2000 draws, over the ten biases, in standard errors. For the relaxed estimators it is no number to be
met: their bias is in the picture. The fit by Gumbel-softmax is compared with the fit by enumeration, by the bound
and by the share of right labels of images that neither has seen.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from flax import nnx
from sklearn.datasets import load_digits

import vipl
from vipl import Biased, CoupledAlternative, Enumerate, GumbelSoftmax, ReinMax, Score, StraightThrough
from vipl.interop.flax import functional
from vipl.zoo import Number, Outcome

PAPER = "Jang, Gu and Poole (2017), eq. (2); Kingma et al. (2014), model M2; Liu et al. (2023), ReinMax"
OBJECTIVE = "the semi-supervised evidence lower bound, by estimators of the label"

DIGITS, LABELS = load_digits(return_X_y=True)
ORDER = np.random.RandomState(0).permutation(len(LABELS))
IMAGES, KNOWN = (DIGITS > 7).astype("float32")[ORDER], np.eye(10, dtype=np.float32)[LABELS[ORDER]]
TRAIN, LABELLED, NUM_DRAWS = 300, 100, 2000
ESTIMATORS = {
    "CoupledAlternative": CoupledAlternative(),
    "Score": Score(),
    "GumbelSoftmax(1)": GumbelSoftmax(1.0),
    "GumbelSoftmax(0.3)": GumbelSoftmax(0.3),
    "StraightThrough": StraightThrough(),
    "ReinMax": ReinMax(),
}

RNGS = nnx.Rngs(0)
encoder, encode = functional(nnx.Linear(64, 18, rngs=RNGS))
decoder, decode = functional(nnx.Sequential(nnx.Linear(14, 32, rngs=RNGS), nnx.tanh, nnx.Linear(32, 64, rngs=RNGS)))


def label(logits, estimator):
    """A draw of y as a one-hot vector."""
    if isinstance(estimator, Biased):
        return vipl.sample("y", dist.Multinomial(1, logits=logits), estimator)
    return jax.nn.one_hot(vipl.sample("y", dist.Categorical(logits=logits), estimator), 10)


def image_bound(params, x, estimator, y=None):
    """The bound of one image; its y is drawn where it is not known."""
    logits, mean, log_sd = jnp.split(encode(params["encoder"])(x), [10, 14])
    z = vipl.sample("z", dist.Normal(mean, jnp.exp(log_sd)).to_event(1))
    log_pi = jax.nn.log_softmax(logits)
    kl = jnp.sum((mean**2 + jnp.exp(2 * log_sd) - 1) / 2 - log_sd)
    if y is None:
        kl += jnp.sum(jnp.exp(log_pi) * log_pi) + jnp.log(10.0)
        y = label(logits, estimator)
    pixels = decode(params["decoder"])(jnp.concatenate([y, z]))
    return dist.Bernoulli(logits=pixels).log_prob(x).sum() - kl, log_pi


def bound(estimator):
    """L, of images without labels."""
    return vipl.expectation(lambda params, x: jnp.mean(jax.vmap(lambda x: image_bound(params, x, estimator)[0])(x)))


def semi_supervised(estimator):
    """L, and the part of the images whose labels are known."""

    @vipl.expectation
    def objective(params, x):
        seen, log_pi = jax.vmap(lambda x, y: image_bound(params, x, None, y))(IMAGES[:LABELLED], KNOWN[:LABELLED])
        return bound(estimator)(params, x) + jnp.mean(seen + 10 * jnp.sum(KNOWN[:LABELLED] * log_pi, 1))

    return objective


def gradients(params, keys):
    """In the biases of π, of the bound of two images: by enumeration, and less that by each estimator, f[keys, 10]."""

    def one(key, estimator):
        return bound(estimator).value_and_grad(key, params, IMAGES[:2])[1]["encoder"]["bias"][:10]

    def all_of(key):
        exact = one(key, Enumerate())
        return exact, {name: one(key, estimator) - exact for name, estimator in ESTIMATORS.items()}

    quick = {"xla_backend_optimization_level": 0}  # compiling takes longer than running
    return jax.jit(jax.vmap(all_of), compiler_options=quick)(keys)


def run(progress: bool = True) -> Outcome:
    """Tolerances: 5 standard errors; of the fits 0.5 nat and 4 % of the labels, for what the relaxation costs."""
    key, held, ends, curves = jax.random.key(0), jnp.asarray(IMAGES[TRAIN:]), {}, {}
    evaluate = jax.jit(bound(Enumerate()).estimate)
    for name, estimator in {"Enumerate": Enumerate(), "Gumbel-softmax": GumbelSoftmax(0.3)}.items():
        adam = optax.adam(optax.cosine_decay_schedule(0.02, 400))
        options = {"key": key, "data": jnp.asarray(IMAGES[:TRAIN]), "num_steps": 400, "progress": progress}
        fit = vipl.fit(semi_supervised(estimator), {"encoder": encoder, "decoder": decoder}, adam, **options)
        guess = np.argmax(encode(fit.params["encoder"])(held)[:, :10], 1)
        share = np.mean(guess == np.argmax(KNOWN[TRAIN:], 1))
        ends[name], curves[name] = (float(evaluate(key, fit.params, held)), float(share)), fit.values
        if name == "Enumerate":  # gradients are compared before π is certain of its labels
            params = {"encoder": encoder, "decoder": fit.params["decoder"]}
    exact, differences = gradients(params, jax.random.split(key, NUM_DRAWS))
    size, numbers, points = float(jnp.linalg.norm(exact.mean(0))), [], {}
    for name, off in differences.items():
        error = off.std(0) / NUM_DRAWS**0.5
        points[name] = [float(jnp.linalg.norm(x)) / size for x in (off.std(0), off.mean(0), error)]
        if not isinstance(ESTIMATORS[name], Biased):
            deviation = float(jnp.abs(off.mean(0) / error).max())
            numbers.append(Number(f"{name}: bias, standard errors", deviation, 0.0, 5.0))
    (best, best_share), (reached, share) = ends["Enumerate"], ends["Gumbel-softmax"]
    numbers.append(Number("bound, fit by Gumbel-softmax", reached, best, 0.5))
    numbers.append(Number("right labels, fit by Gumbel-softmax", share, best_share, 0.04))

    def draw(figure):
        left, right = figure.subplots(1, 2)
        for name, (noise, bias, error) in points.items():
            marker = "x" if isinstance(ESTIMATORS[name], Biased) else "o"
            left.errorbar(noise, bias, error, marker=marker, ls="", capsize=3, label=name)
        left.set(xscale="log", xlabel="sd of the gradient", ylabel="bias (with its standard error)")
        left.set(title="Gradients, by the exact one's length", ylim=(0, 1))
        for name, values in curves.items():
            right.plot(values, lw=0.8, label=f"{name}: {ends[name][1]:.0%} right")
        right.set(xlabel="step", ylabel="objective, nats", title="Fits, labels held out")
        left.legend(fontsize=8)
        right.legend()

    return Outcome(numbers, draw)
