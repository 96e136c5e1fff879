"""Sigmoid belief network, by every unbiased estimator of discrete choices.

    z_j ~ Bernoulli(σ(u_j)), j = 1..5,   x_k | z ~ Bernoulli(σ(V z + v)_k), k = 1..4,
    q(z) = Π_j Bernoulli(z_j; σ(φ_j)),   L(φ) = E_q[log p(z, x) - log q(z)],
for one x, and fixed weights u, V, v.

References: z has 32 values, so that L(φ) is a sum of 32 terms, as is its gradient; both are computed in NumPy. Each
estimator makes 100,000 estimates of the gradient at one φ, of two samples each. The number is the largest deviation of
their mean from the exact gradient, over the five elements of φ, in standard errors. It is 8 for a score function with
nine tenths of its weight, and 17 for one whose baseline is computed from the site's own value. The best L is found by
coordinate ascent from 30 starts: the log odds of a bit are the mean difference of log p between its two values.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax

import vipl
from vipl import ARM, CoupledAlternative, DisARM, Enumerate, LeaveOneOut, LocalEnumerate, MeasureValued, Relax, Score
from vipl.zoo import Number, Outcome

PAPER = "Neal (1992); Mnih and Gregor (2014), Neural variational inference; Dong, Mnih and Tucker (2020), eq. (6)"
OBJECTIVE = "the evidence lower bound of discrete latents, by nine estimators"

RNG = np.random.RandomState(3)
PRIOR, WEIGHTS, BIAS = [np.float32(2 * RNG.randn(*shape)) for shape in ((5,), (4, 5), (4,))]
X = np.array([1, 0, 1, 1])
VALUES = np.array(list(itertools.product([0, 1], repeat=5)))
SIGNS = 2 * VALUES - 1
NUM_DRAWS, START = 100_000, np.array([0.3, -0.4, 0.5, 0.2, -0.6], np.float32)


def relaxed(z):
    """The control variate of RELAX (here REBAR): log p(b, x) at relaxed bits b = σ(z)."""
    b = jax.nn.sigmoid(z)
    return b @ PRIOR + jnp.sum(jax.nn.log_sigmoid((WEIGHTS @ b + BIAS) * (2 * X - 1)))


ESTIMATORS = {
    "Enumerate": Enumerate(),
    "LocalEnumerate": LocalEnumerate(),
    "MeasureValued": MeasureValued(),
    "CoupledAlternative": CoupledAlternative(),
    "DisARM": DisARM(),
    "ARM": ARM(),
    "Relax": Relax(relaxed),
    "Score(LeaveOneOut)": Score(LeaveOneOut()),
    "Score": Score(),
}


@vipl.gen
def model():
    """A layer of latents, and one of data."""
    z = vipl.sample("z", dist.Bernoulli(logits=PRIOR).to_event(1))
    vipl.sample("x", dist.Bernoulli(logits=WEIGHTS @ z + BIAS).to_event(1))


@vipl.gen
def guide(phi):
    """Independent bits."""
    vipl.sample("z", dist.Bernoulli(logits=phi).to_event(1))


@vipl.expectation
def bound(phi):
    """The evidence lower bound."""
    return vipl.objectives.elbo(model(), guide(phi), {"x": X})


def log_joint():
    """The values of log p(z, x), f[32]: log σ(l) of each bit, with l its logit or, where it is 0, minus that."""
    bits = (VALUES @ WEIGHTS.T + BIAS) * (2 * X - 1)
    return -np.logaddexp(0, -PRIOR * SIGNS).sum(1) - np.logaddexp(0, -bits).sum(1)


def exact(phi, log_p):
    """The bound and its gradient, as sums: ∇L = Σ_z q(z) (log p(z, x) - log q(z)) (z - σ(φ))."""
    log_q = -np.logaddexp(0, -phi * SIGNS).sum(1)
    terms = np.exp(log_q) * (log_p - log_q)
    return terms.sum(), terms @ (VALUES - 1 / (1 + np.exp(-phi)))


def best_bound(log_p):
    """The highest of 30 ends of coordinate ascent."""

    def ascend(phi):
        for i in [*range(5)] * 60:
            others = np.prod(np.delete(1 / (1 + np.exp(-phi * SIGNS)), i, 1), 1)
            phi[i] = (others * log_p) @ SIGNS[:, i]
        return exact(phi, log_p)[0]

    return max(ascend(RNG.randn(5)) for _ in range(30))


def gradients(keys):
    """Estimates of the gradient by each estimator, f[NUM_DRAWS, 5] each."""

    def one(key):
        chosen = {name: bound.with_estimators({"z": estimator}) for name, estimator in ESTIMATORS.items()}
        return {name: c.value_and_grad(key, START, num_samples=2)[1] for name, c in chosen.items()}

    quick = {"xla_backend_optimization_level": 0}  # nine programs: compiling takes longer than running
    return jax.jit(jax.vmap(one), compiler_options=quick)(keys)


def run(progress: bool = True) -> Outcome:
    """Gradients: 5 standard errors. Fit: 300 steps of Adam on the enumerated bound, which leave less than 1e-3 nat."""
    log_p, numbers, spread, paths = log_joint(), [], {}, {}
    _, slope = exact(START, log_p)
    for name, draws in gradients(jax.random.split(jax.random.key(0), NUM_DRAWS)).items():
        draws = np.asarray(draws, float)
        error = draws.std(0) / NUM_DRAWS**0.5 + 1e-6  # Enumerate has errors of rounding alone
        deviation = float(np.abs((draws.mean(0) - slope) / error).max())
        numbers.append(Number(f"{name}: gradient's deviation", deviation, 0.0, 5.0))
        spread[name] = np.sqrt(draws.var(0).sum())
    for name in ("Enumerate", "Score"):
        adam = optax.adam(optax.cosine_decay_schedule(0.2, 300))
        options = {"key": jax.random.key(0), "num_steps": 300, "num_samples": 4, "progress": progress}
        objective = bound.with_estimators({"z": ESTIMATORS[name]})
        paths[name] = vipl.fit(objective, jnp.asarray(START), adam, **options)
    best, reached = best_bound(log_p), exact(np.asarray(paths["Enumerate"].params, float), log_p)[0]
    numbers.append(Number("best bound", float(reached), float(best), 1e-3))

    def draw(figure):
        left, right = figure.subplots(1, 2)
        names = sorted(spread.keys() - {"Enumerate"}, key=spread.__getitem__, reverse=True)
        left.plot([spread[name] for name in names], names, "o")
        left.set(
            xscale="log", xlabel="sd of the gradient, all elements", title="Noise (Enumerate has none)", xlim=(0.5, 20)
        )
        for name, fit in reversed(paths.items()):
            right.plot(fit.values, lw=0.8, label=name)
        right.axhline(best, color="k", ls=":", label="best, by enumeration")
        right.set(xlabel="step", ylabel="nats", title="Evidence lower bound", ylim=(best - 4, best + 2))
        right.legend()

    return Outcome(numbers, draw)
