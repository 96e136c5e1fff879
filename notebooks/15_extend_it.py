# %% [markdown]
# # Extend it
#
# Nothing in vipl is registered. An estimator, a distribution, an inference algorithm and a guide are objects that a
# program is given, and yours are as good as those that come with it. This notebook writes one of each, in a few
# lines, and checks each: what has to be true of it is a statement about a mean, and `vipl.testing.assert_unbiased` tests
# such statements.
#
# | what | what you write | what has to be true |
# | --- | --- | --- |
# | estimator | one method: a site's law -> weighted points | value and gradient are unbiased |
# | distribution | a NumPyro distribution: a sampler and a density | the two belong together |
# | algorithm | two functions: forward, and given one particle | E[w] = p(x), and E[1 / w given x] = 1 / p(x) |
# | guide | a program of parameters | its choices are the model's latent ones |

# %%
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import optax
from scipy import stats

import vipl
from vipl import Enumerate, MeasureValued, Reparam, Score, guides, objectives, sample
from vipl.estimators import Estimator, Points
from vipl.inference import Algorithm, Importance, Particles
from vipl.testing import assert_unbiased

key = jax.random.key(0)


def largest_z(check):
    return max(float(np.max(z)) for z in jax.tree.leaves(check.z))


def message_of(draw, exact, resolution):
    """What `assert_unbiased` says of a draw that is wrong."""
    try:
        assert_unbiased(draw, exact, key=key, resolution=resolution)
    except AssertionError as error:
        return str(error).split(":")[0]
    raise RuntimeError("the broken twin was not caught")


# %% [markdown]
# ## An estimator
#
# An estimator puts a few weighted points in the place of a site's distribution; the rest of the program is run at each.
# For a discrete choice with one value that is much more likely than the others, Liu et al. (2019) sum over that value,
# and draw one of the others:
#
#     E[k(x)] = p(m) k(m) + (1 - p(m)) E[k(x') given x' is not m],      x' drawn
#
# The second point is drawn, so that its weight carries the derivative of its score: the weight is times
# exp(l - stop_gradient(l)), with l the log probability of the draw, which is 1 and has the derivative of l.


# %%
class SumAndSample(Estimator):
    def points(self, law, key):
        log_p = jax.nn.log_softmax(law.dist.logits)
        most_likely = jnp.argmax(log_p)
        others = jnp.where(jnp.arange(log_p.size) == most_likely, -jnp.inf, log_p)
        log_rest = jax.nn.logsumexp(others)
        other = jax.random.categorical(key, jax.lax.stop_gradient(others))
        score = log_p[other] - log_rest
        log_weights = jnp.stack([log_p[most_likely], log_rest + score - jax.lax.stop_gradient(score)])
        return Points(jnp.stack([most_likely, other]), log_weights)


@vipl.expectation
def cost(logits):
    k = sample("k", dist.Categorical(logits=logits))
    j = sample("j", dist.Categorical(logits=logits * (k + 1)))
    return (k - 1.5) ** 2 + jnp.sin(3.0 * j)


def draws_of(estimator):
    chosen = cost.with_estimators({"k": estimator, "j": estimator})
    return lambda key: chosen.value_and_grad(key, logits)


logits = jnp.array([0.2, 2.0, -0.5, -1.0])
exact = draws_of(Enumerate())(key)
check = assert_unbiased(draws_of(SumAndSample()), exact, key=key, resolution=0.02)
print(f"largest z: {largest_z(check):.1f}")

# %% [markdown]
# The test looked at the value and at each derivative. It fails for |z| above 5, and fails too if a bias of 0.02 could
# have gone unseen. See that it can fail: the same estimator without its score.


# %%
class WithoutScore(Estimator):
    def points(self, law, key):
        found = SumAndSample().points(law, key)
        rest = jnp.log1p(-jnp.exp(found.log_weights[0]))
        return Points(found.values, jnp.stack([found.log_weights[0], rest]))


print("the broken one:", message_of(draws_of(WithoutScore()), exact, 0.02))

deviation = {}
for estimator in (Score(), MeasureValued(), SumAndSample(), Enumerate()):
    _, gradients = jax.jit(jax.vmap(draws_of(estimator)))(jax.random.split(key, 4000))
    deviation[type(estimator).__name__] = float(jnp.sqrt(jnp.sum(jnp.var(gradients, axis=0))))
    print(f"{type(estimator).__name__:<14} sd of one gradient {deviation[type(estimator).__name__]:.3f}")

# %% [markdown]
# Ours runs the program at two values of each site, `MeasureValued` at all four, and `Score` at one; the noise is in that
# order. It is written for one site in one lane. Loops, lanes and branches around it are not its concern: it can be put
# at a site in a `scan` as it is.
#
# ## A distribution
#
# A site takes any NumPyro distribution, and NumPyro says how to write one. The Lomax distribution is a power law
# beyond a scale. `reparametrized_params` says that `Reparam()` may be used.


# %%
class Lomax(dist.Distribution):
    arg_constraints = {"alpha": dist.constraints.positive, "scale": dist.constraints.positive}
    support = dist.constraints.positive
    reparametrized_params = ["alpha", "scale"]

    def __init__(self, alpha, scale=1.0, *, validate_args=None):
        self.alpha, self.scale = jnp.broadcast_arrays(jnp.asarray(alpha, float), jnp.asarray(scale, float))
        super().__init__(batch_shape=self.alpha.shape, validate_args=validate_args)

    def sample(self, key, sample_shape=()):
        return self.scale * jnp.expm1(jax.random.exponential(key, sample_shape + self.batch_shape) / self.alpha)

    def log_prob(self, value):
        return jnp.log(self.alpha / self.scale) - (self.alpha + 1) * jnp.log1p(value / self.scale)


# %% [markdown]
# Do sampler and density belong together? `Reparam()` differentiates the sampler, and does not look at the density.
# `Score()` differentiates the density. So if both have the right gradient, both are right. For x ~ Lomax(a, s) the mean
# of log(1 + x / 2) has derivatives -1 / a² and 1 / (2 (a + 1)) at s = 2.


# %%
@vipl.expectation
def mean_log(params):
    x = sample("x", Lomax(params["alpha"], params["scale"]))
    return jnp.log1p(x / 2.0)


params = {"alpha": 1.7, "scale": 2.0}
exact = 1 / 1.7, {"alpha": -1 / 1.7**2, "scale": 1 / (2 * 2.7)}
for estimator in (Reparam(), Score()):
    chosen = mean_log.with_estimators({"x": estimator})
    check = assert_unbiased(lambda key, c=chosen: c.value_and_grad(key, params), exact, key=key, resolution=0.02)
    print(f"{type(estimator).__name__:<8} largest z: {largest_z(check):.1f}")

# %% [markdown]
# ## An inference algorithm
#
# `marginal(program, keep, algorithm)` is a distribution whose density an algorithm estimates. An algorithm is two
# functions:
#
# - `particles`: weighted values of the unknown choices, and a `log_normalizer` whose exponential has the mean p(known);
# - `conditional`: the same `log_normalizer` where one particle is *given*, drawn from the exact posterior. This is
#   what keeps a bound a bound where the distribution is a guide.
#
# Ours weighs the proposal in mirrored pairs: a draw z, and its mirror image, which the proposal draws as often. Given a
# particle, its partner is the mirror image of that; nothing is left to draw.


# %%
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mirrored(Algorithm):
    proposal: Any
    mirror: Callable = field(metadata={"static": True})

    def weigh(self, program, known, z):
        return program.assess(known | z).log_prob - self.proposal.assess(z).log_prob

    def particles(self, program, known):
        drawn = self.proposal.simulate().choices
        pair = drawn, self.mirror(drawn)
        log_weights = jnp.stack([self.weigh(program, known, z) for z in pair])
        choices = jax.tree.map(lambda *z: jnp.stack(z), *pair)
        return Particles(choices, log_weights, jax.nn.logsumexp(log_weights) - jnp.log(2.0))

    def conditional(self, program, known, first):
        pair = first.choices, self.mirror(first.choices)
        log_weights = jnp.stack([self.weigh(program, known, z) for z in pair])
        return jax.nn.logsumexp(log_weights) - jnp.log(2.0)


@vipl.gen
def noisy():
    z = sample("z", dist.Normal(0.0, 1.0))
    sample("x", dist.Normal(z, 1.5))


@vipl.gen
def prior():
    sample("z", dist.Normal(0.0, 1.0))


def negate(choices):
    return {"z": -choices["z"]}


by_pairs = vipl.marginal(noisy(), "x", Mirrored(prior(), negate))
by_two = vipl.marginal(noisy(), "x", Importance(2, prior()))
law_of_x = dist.Normal(0.0, jnp.sqrt(1.0 + 1.5**2))  # exact

# %% [markdown]
# Two contracts, two tests. The first has a given x. The second draws x, and the mean of p(x) / w has to be 1.


# %%
def ratio_of_given(source):
    return lambda key: jnp.exp(source.assess({"x": 1.2}, key=key).log_prob - law_of_x.log_prob(1.2))


def ratio_of_drawn(source):
    def draw(key):
        trace = source.simulate(key)
        return jnp.exp(law_of_x.log_prob(trace.choices["x"]) - trace.log_prob)

    return draw


for test in (ratio_of_given, ratio_of_drawn):
    check = assert_unbiased(test(by_pairs), 1.0, key=key, resolution=0.02)
    print(f"{test.__name__}: largest z {largest_z(check):.1f}")


# %%
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Forgetful(Mirrored):
    """Forgets the particle that it is given, and draws a new pair."""

    def conditional(self, program, known, first):
        return self.particles(program, known).log_normalizer


forgetful = vipl.marginal(noisy(), "x", Forgetful(prior(), negate))
print("the broken one:", message_of(ratio_of_drawn(forgetful), 1.0, 0.02))

gaps = {}
for name, source in {"Importance(2)": by_two, "Mirrored": by_pairs}.items():
    log_w = jax.vmap(lambda key, s=source: s.assess({"x": 1.2}, key=key).log_prob)(jax.random.split(key, 20_000))
    gaps[name] = float(law_of_x.log_prob(1.2) - log_w.mean())
    print(f"{name:<14} E[log w] is {gaps[name]:.4f} nats below log p(x)")

# %% [markdown]
# Both are lower bounds with two evaluations of the model; the mirrored pair is closer, as what one overestimates the
# other one underestimates.
#
# ## A guide
#
# A guide is a program of parameters. `guides.combine` puts it, alone or with made guides, where a made guide may stand,
# so that a `Posterior` can be asked all that the others can.
#
# With the tail index of a Lomax distribution unknown, and its scale 1, log(1 + x) is exponential with rate alpha. So
# for a Gamma prior the exact posterior is Gamma(2 + n, 1 + Σ log(1 + x)). Our guide is a Gamma distribution with free
# parameters; the made ones are Gaussian in the logarithm. The data are 20 draws.

# %%
claims = Lomax(1.5).sample(jax.random.key(3), (20,))
data = {"claims": claims}


@vipl.gen
def insurance(num_claims):
    alpha = sample("alpha", dist.Gamma(2.0, 1.0))
    sample("claims", Lomax(alpha * jnp.ones(num_claims)))


@vipl.gen
def gamma_tail(phi):
    sample("alpha", dist.Gamma(jnp.exp(phi["log_shape"]), jnp.exp(phi["log_rate"])))


mine = guides.combine({"tail": gamma_tail})


@vipl.expectation
def elbo(phi):
    return objectives.elbo(insurance(20), mine(phi), data)


# %% [markdown]
# The bound is log p(y) - KL(guide, posterior), and both terms are known in closed form. So its gradient is checked
# before anything is fitted.

# %%
total = jnp.sum(jnp.log1p(claims))
posterior_law = dist.Gamma(22.0, 1.0 + total)
log_evidence = float(
    stats.gamma(2.0).logpdf(1.5)
    + Lomax(1.5 * jnp.ones(20)).log_prob(claims).sum()
    - stats.gamma(22.0, scale=1 / (1 + float(total))).logpdf(1.5)
)


def exact_bound(phi):
    of_guide = dist.Gamma(jnp.exp(phi["tail"]["log_shape"]), jnp.exp(phi["tail"]["log_rate"]))
    return log_evidence - dist.kl_divergence(of_guide, posterior_law)


phi = mine.init(key, tail={"log_shape": jnp.log(8.0), "log_rate": jnp.log(5.0)})
exact = jax.value_and_grad(exact_bound)(phi)
check = assert_unbiased(lambda key: elbo.value_and_grad(key, phi), exact, key=key, resolution=0.1)
print(f"largest z: {largest_z(check):.1f}")

# %% short="NUM_STEPS = 1000"
NUM_STEPS = 2000

# %%
optimizer = optax.adam(optax.cosine_decay_schedule(0.05, NUM_STEPS))
fit = vipl.fit(elbo, phi, optimizer, key=key, num_steps=NUM_STEPS, num_samples=8, progress=False)
posterior = vipl.Posterior(insurance(20), data, mine, fit.params)
made = vipl.infer(insurance(20), data, key=key)
print("own guide: ", posterior.evidence(key))
print("made guide:", made.evidence(key))
print(f"exact:      {log_evidence:.3f}")

# %%
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 2.9))
left.bar(list(deviation), list(deviation.values()))
left.tick_params(axis="x", labelrotation=20, labelsize=8)
left.set(title="Estimators", ylabel="sd of one gradient")
x = np.linspace(0.0, 6.0, 121)
middle.hist(
    Lomax(1.5).sample(key, (20_000,)), np.linspace(0.0, 6.0, 61), weights=np.full(20_000, 10 / 20_000), alpha=0.5
)
middle.plot(x, np.exp(Lomax(1.5).log_prob(x)), "k", linewidth=1)
middle.set(title="Lomax: draws and density", xlabel="x")
alpha = np.linspace(0.3, 3.5, 200)
right.plot(alpha, np.exp(posterior_law.log_prob(alpha)), "k", label="exact")
right.hist(posterior.sample(key, 20_000)["alpha"], 60, density=True, alpha=0.5, label="own guide")
right.set(title="Posterior of alpha", xlabel="alpha")
right.legend(frameon=False)
figure.tight_layout()

# %% [markdown]
# **Look at** k-hat and the upper bound: the family of the guide has the exact posterior in it, so that at the optimum all
# weights are the same, and the bound *is* the evidence. The made guide is close, but its tails are too light, and there
# is no upper bound by its weights.
#
# What else can be replaced: objectives are programs (notebook 8), proposals of `Importance` and `SMC` are programs or
# functions, optimizers are those of optax, networks those of any library. The rules that keep an estimator right are
# in `docs/how-to.md`, "Write an estimator", and why they suffice in `docs/theory.md`.

# %% short="TOLERANCE = 0.02"
TOLERANCE = 0.005

# %%
of_own, of_made = posterior.improve(key, 4000), made.improve(key, 4000)
print(f"bound of the own guide {float(of_own.bound):.4f}, of the made one {float(of_made.bound):.4f}")
assert abs(float(of_own.bound) - log_evidence) < TOLERANCE
assert deviation["SumAndSample"] < deviation["Score"]
assert gaps["Mirrored"] < gaps["Importance(2)"]
