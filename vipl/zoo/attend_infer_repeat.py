"""Attend, infer, repeat in one dimension: its gradients and its bound beside enumeration.

    for i = 1, 2:   pres_i ~ Bernoulli(½) while all before were 1,   where_i ~ Uniform{0, ..., 5} where pres_i = 1,
    image ~ Normal(Σ_i pres_i object(where_i), 0.4) in eight pixels; an object is (0.7, 1, 0.5) from pixel where_i on;
    q: pres_1, where_1, pres_2 | where_1, where_2 | where_1, a table for each of three images (0, 1 and 2 objects).

References: an image has 1 + 6 + 36 explanations, whose densities are summed in NumPy below: log evidence, and the
posterior of the number of objects. q contains the posterior, so that the best bound is the evidence. Gradients in the
logits of pres_1 and where_1, at the start and for the image of two objects, are compared with that of enumeration: the
number is the largest deviation of the mean of 50,000 estimates, in standard errors; it is 6 for a score function with
four fifths of its weight. Without the mask of pres_2 the "bound" is 0.6 nat above the evidence. The long run, with
digits and networks, is `python -m benchmarks.air`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax

import vipl
from vipl import CoupledAlternative, Enumerate, MeasureValued, Score
from vipl.zoo import Number, Outcome

PAPER = "Eslami et al. (2016), Attend, infer, repeat, eq. (2)-(5); Becker et al. (2024), section 8"
OBJECTIVE = "the evidence lower bound of a variable number of objects"

PLACES, PIXELS, NOISE, NUM_DRAWS = 6, 8, 0.4, 50_000
OBJECT = np.zeros((PLACES, PIXELS), np.float32)
for place in range(PLACES):
    OBJECT[place, place : place + 3] = 0.7, 1.0, 0.5
CANVASES = np.stack([np.zeros(PIXELS), OBJECT[1], OBJECT[0] + OBJECT[4]])
IMAGES = (CANVASES + 0.2 * np.random.RandomState(0).randn(3, PIXELS)).astype("float32")


@vipl.gen
def model():
    """One image. What is not there is masked."""
    canvas, present = jnp.zeros(PIXELS), jnp.array(1)
    for i in (1, 2):
        present = present * vipl.sample(f"pres{i}", dist.Bernoulli(0.5).mask(present == 1))
        where = vipl.sample(f"where{i}", dist.CategoricalProbs(jnp.full(PLACES, 1 / PLACES)).mask(present == 1))
        canvas = canvas + present * jnp.asarray(OBJECT)[where]
    vipl.sample("image", dist.Normal(canvas, NOISE).to_event(1))


@vipl.gen
def guide(phi):
    """The tables of one image."""
    here = vipl.sample("pres1", dist.Bernoulli(logits=phi["pres1"]))
    where = vipl.sample("where1", dist.CategoricalLogits(phi["where1"]).mask(here == 1))
    also = here * vipl.sample("pres2", dist.Bernoulli(logits=phi["pres2"][where]).mask(here == 1))
    vipl.sample("where2", dist.CategoricalLogits(phi["where2"][where]).mask(also == 1))


SITES = ("pres1", "where1", "pres2", "where2")


@vipl.expectation
def bound(phi, image):
    """Of one image."""
    return vipl.objectives.elbo(model(), guide(phi), {"image": image})


def by(estimator):
    """The bound with the same estimator at all sites."""
    return bound.with_estimators(dict.fromkeys(SITES, estimator))


@vipl.expectation
def enumerated(phi):
    """The sum over the images, exact."""
    return jnp.sum(jax.vmap(by(Enumerate()))(phi, jnp.asarray(IMAGES)))


def gradients(phi, keys):
    """In the logits of where_1 and pres_1, exact f[PLACES + 1] and estimated f[num_keys, PLACES + 1]."""

    def one(key, estimator):
        _, slope = by(estimator).value_and_grad(key, phi, jnp.asarray(IMAGES[2]))
        return jnp.append(slope["where1"], slope["pres1"])

    def every(keys):
        chosen = {"Score": Score(), "MeasureValued": MeasureValued(), "CoupledAlternative": CoupledAlternative()}
        draws = {name: jax.vmap(lambda key, e=e: one(key, e))(keys) for name, e in chosen.items()}
        return one(keys[0], Enumerate()), draws

    quick = {"xla_backend_optimization_level": 0}  # compiling takes longer than running
    return jax.jit(every, compiler_options=quick)(keys)


def exact():
    """Log evidence of the three images, and f[3, 3], the probabilities of 0, 1 and 2 objects."""
    by_count = [np.zeros((1, PIXELS)), OBJECT, (OBJECT[:, None] + OBJECT).reshape(-1, PIXELS)]
    prior, joint = (0.5, 0.25, 0.25), np.zeros((3, 3))
    for n, canvases in enumerate(by_count):
        density = np.exp(-0.5 * ((IMAGES[:, None] - canvases) / NOISE) ** 2) / (NOISE * np.sqrt(2 * np.pi))
        joint[:, n] = prior[n] * density.prod(2).mean(1)
    return np.log(joint.sum(1)).sum(), joint / joint.sum(1, keepdims=True)


def counted(phi):
    """The probabilities of 0, 1 and 2 objects under q, f[3, 3], from its tables."""
    one, two = (1 / (1 + np.exp(-phi[name])) for name in ("pres1", "pres2"))
    where = np.exp(phi["where1"]) / np.exp(phi["where1"]).sum(1, keepdims=True)
    both = one * (where * two).sum(1)
    return np.stack([1 - one, one - both, both], 1)


def run(progress: bool = True) -> Outcome:
    """Gradients: 5 standard errors. Fit: 500 steps of Adam on the enumerated bound, which leave 0.01."""
    key = jax.random.key(0)
    evidence, counts = exact()
    shapes = {"pres1": (3,), "where1": (3, PLACES), "pres2": (3, PLACES), "where2": (3, PLACES, PLACES)}
    rng = np.random.RandomState(1)
    start = {name: (0.3 * rng.randn(*shape)).astype("float32") for name, shape in shapes.items()}
    numbers, spread = [], {}
    slope, draws = gradients({name: x[2] for name, x in start.items()}, jax.random.split(key, NUM_DRAWS))
    for name, drawn in draws.items():
        error = np.asarray(drawn.std(0)) / NUM_DRAWS**0.5
        numbers.append(
            Number(f"{name}: gradient's deviation", float(np.abs((drawn.mean(0) - slope) / error).max()), 0.0, 5.0)
        )
        spread[name] = float(jnp.sqrt(drawn.var(0).sum()))

    adam = optax.adam(optax.cosine_decay_schedule(0.2, 500))
    fit = vipl.fit(enumerated, start, adam, key=key, num_steps=500, progress=progress)
    shares = counted(jax.tree.map(lambda x: np.asarray(x, float), fit.params))
    numbers.append(Number("bound of three images", float(fit.values[-1]), evidence, 0.01))
    numbers.append(Number("largest error of a count's probability", float(np.abs(shares - counts).max()), 0.0, 0.01))

    def draw(figure):
        left, middle, right = figure.subplots(1, 3)
        for n in range(3):
            left.plot(CANVASES[n], color=f"C{n}", label=f"{n} objects")
            left.plot(IMAGES[n], "o", color=f"C{n}", ms=3)
            middle.bar(np.arange(3) + 0.25 * (n - 1), shares[:, n], 0.2, label=f"{n} objects")
            middle.plot(np.arange(3) + 0.25 * (n - 1), counts[:, n], "k_", ms=12)
        left.set(xlabel="pixel", ylabel="brightness", title="Images", xticks=range(PIXELS), ylim=(-0.3, 1.6))
        middle.set(xlabel="image", ylabel="probability", title="Number of objects", xticks=range(3), ylim=(0, 1.4))
        right.plot(list(spread), list(spread.values()), "o")
        right.set(ylabel="sd of the gradient", title="Estimators", yscale="log", ylim=(1, 30))
        right.tick_params("x", rotation=20)
        left.legend(fontsize=8)
        middle.legend(fontsize=8)

    return Outcome(numbers, draw)
