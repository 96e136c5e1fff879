# %% [markdown]
# # Discrete latent variables
#
# A discrete latent variable has no gradient to follow. There are three ways around that, and this notebook takes
# all of them:
#
# 1. **Sum it out of the model.** `vipl.marginal(..., Enumeration())` does this for you, exactly. Do it whenever you
#    can.
# 2. **Keep it, and give it a guide** with probabilities for its values. An estimator, chosen per site, makes the
#    gradient: `Enumerate`, `MeasureValued`, `Score`.
# 3. **Sum it out in the answer**: its posterior probabilities ("responsibilities") come back at the end.
#
# The models are a Gaussian mixture and a zero-inflated Poisson. Both have exact answers to compare with.

# %%
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import optax
from scipy import special, stats

import vipl
from vipl import Enumerate, LeaveOneOut, MeasureValued, Score, guides, sample
from vipl.inference import Enumeration

key = jax.random.key(0)

# %% [markdown]
# ## A mixture: eruptions of Old Faithful
#
# The data are the durations, in minutes, of 272 eruptions of a geyser (Azzalini and Bowman, 1990). Some eruptions
# are short, some are long. Each has a hidden kind `k`. We write the eruption as a program of its own, because we
# will use it in several ways.

# %%
minutes = np.array(
    """
    3.600 1.800 3.333 2.283 4.533 2.883 4.700 3.600 1.950 4.350 1.833 3.917 4.200 1.750 4.700 2.167 1.750 4.800
    1.600 4.250 1.800 1.750 3.450 3.067 4.533 3.600 1.967 4.083 3.850 4.433 4.300 4.467 3.367 4.033 3.833 2.017
    1.867 4.833 1.833 4.783 4.350 1.883 4.567 1.750 4.533 3.317 3.833 2.100 4.633 2.000 4.800 4.716 1.833 4.833
    1.733 4.883 3.717 1.667 4.567 4.317 2.233 4.500 1.750 4.800 1.817 4.400 4.167 4.700 2.067 4.700 4.033 1.967
    4.500 4.000 1.983 5.067 2.017 4.567 3.883 3.600 4.133 4.333 4.100 2.633 4.067 4.933 3.950 4.517 2.167 4.000
    2.200 4.333 1.867 4.817 1.833 4.300 4.667 3.750 1.867 4.900 2.483 4.367 2.100 4.500 4.050 1.867 4.700 1.783
    4.850 3.683 4.733 2.300 4.900 4.417 1.700 4.633 2.317 4.600 1.817 4.417 2.617 4.067 4.250 1.967 4.600 3.767
    1.917 4.500 2.267 4.650 1.867 4.167 2.800 4.333 1.833 4.383 1.883 4.933 2.033 3.733 4.233 2.233 4.533 4.817
    4.333 1.983 4.633 2.017 5.100 1.800 5.033 4.000 2.400 4.600 3.567 4.000 4.500 4.083 1.800 3.967 2.200 4.150
    2.000 3.833 3.500 4.583 2.367 5.000 1.933 4.617 1.917 2.083 4.583 3.333 4.167 4.333 4.500 2.417 4.000 4.167
    1.883 4.583 4.250 3.767 2.033 4.433 4.083 1.833 4.417 2.183 4.800 1.833 4.800 4.100 3.966 4.233 3.500 4.366
    2.250 4.667 2.100 4.350 4.133 1.867 4.600 1.783 4.367 3.850 1.933 4.500 2.383 4.700 1.867 3.833 3.417 4.233
    2.400 4.800 2.000 4.150 1.867 4.267 1.750 4.483 4.000 4.117 4.083 4.267 3.917 4.550 4.083 2.417 4.183 2.217
    4.450 1.883 1.850 4.283 3.950 2.333 4.150 2.350 4.933 2.900 4.583 3.833 2.083 4.367 2.133 4.350 2.200 4.450
    3.567 4.500 4.150 3.817 3.917 4.450 2.000 4.283 4.767 4.533 1.850 4.250 1.983 2.250 4.750 4.117 2.150 4.417
    1.817 4.467
    """.split(),
    dtype=float,
)


@vipl.gen
def eruption(weights, loc, scale):
    k = sample("k", dist.Categorical(weights))
    sample("minutes", dist.Normal(loc[k], scale[k]))


def components():
    weights = sample("weights", dist.Dirichlet(jnp.ones(2)))
    loc = sample("loc", dist.Normal(3.0, 2.0).expand([2]))
    scale = sample("scale", dist.LogNormal(-1.0, 0.5).expand([2]))
    return weights, loc, scale


@vipl.gen
def with_kinds(n):
    of_component = components()
    jax.vmap(lambda: sample("eruption", eruption(*of_component)), axis_size=n)()


@vipl.gen
def summed_out(n):
    of_component = components()
    duration = vipl.marginal(eruption(*of_component), "minutes", Enumeration())
    jax.vmap(lambda: sample("eruption", duration), axis_size=n)()


n = minutes.size
data = {"eruption": {"minutes": minutes}}
print(vipl.sites(with_kinds(n), data))
print()
print(vipl.sites(summed_out(n), data))

# %% [markdown]
# The two programs describe the same data. The second has no `k`: its density of one duration is $\sum_k w_k\,
# \mathcal N(y \mid \mu_k, \sigma_k)$, and five real numbers are left to infer. For five real numbers `infer` takes
# a Gaussian with full covariance.
#
# The start matters. `infer` begins at zero in unconstrained coordinates, where the two components are equal, and
# the gradient cannot tell them apart. So we name a start in which they differ.


# %% short="fit_from = lambda loc: short_first"
def fit_from(loc):
    return vipl.infer(summed_out(n), data, key=key, start={"loc": jnp.array(loc)})


short_first = fit_from([2.0, 4.0])
print(short_first.summary())

# %% [markdown]
# Read the last line first. The k-hat below 0.5 says that the Gaussian is close to the exact posterior, as far as
# its draws can see. They cannot see everything.
#
# ## Label switching
#
# Nothing in the model says that component 0 is the short one. Start at the other labelling:

# %%
fits = {"start at (2, 4)": short_first, "start at (4, 2)": fit_from([4.0, 2.0])}
bounds = [float(fit.improve(key, 4000).bound) for fit in fits.values()]

fig, ax = plt.subplots(figsize=(4.5, 4.2))
for (name, fit), bound in zip(fits.items(), bounds, strict=True):
    loc = np.asarray(fit.sample(key, 4000)["loc"][:500])
    print(f"{name}: means of loc {loc[:, 0].mean():.2f} and {loc[:, 1].mean():.2f}, bound {bound:.2f}")
    ax.scatter(*loc.T, s=4, alpha=0.4, label=name)
ax.plot([1, 5], [1, 5], color="0.7", linewidth=1, zorder=0)
ax.set(xlabel="loc[0], minutes", ylabel="loc[1], minutes", title="One posterior, two islands")
ax.legend(frameon=False, markerscale=3, loc="upper right")
fig.tight_layout()

# %% [markdown]
# The bounds are the same, and the means are swapped. The exact posterior has both islands, mirrored at the
# diagonal, with half of its mass on each. Each fit has one island. Three consequences:
#
# - **k-hat cannot see an island that the guide never visits.** It says that the fit is good *on its island*. For a
#   mixture that is what you want: one labelling is enough.
# - **The mean of `loc[0]` over the whole posterior is useless**: it is the same as that of `loc[1]`, about 3.2,
#   where hardly any eruption is. Ask for what does not depend on labels: the predictive density, or components
#   sorted by `loc`.
# - **The evidence has two islands.** Each bound misses half of the mass, so the bound on log p(y) that uses both is
#   larger by log 2; with K components it is log K!. Remember this when you compare different K by their bounds.

# %%
both = special.logsumexp(bounds)
print(
    f"one island: {bounds[0]:.2f}; both: {both:.2f}; the difference: {both - bounds[0]:.2f}, and log 2 = {np.log(2):.2f}"
)

# %% [markdown]
# ## Responsibilities
#
# `k` was summed out, not lost. For given parameters its posterior is exact: `normalize(eruption, the duration,
# Enumeration())` is the posterior of one eruption's choices, and `marginals("k")` its probabilities. We map it over
# draws of the parameters and over a grid of durations.

# %%
grid = jnp.linspace(1.2, 5.5, 200)
draws = jax.tree.map(lambda x: x[:200], short_first.sample(key, 4000))


def responsibility(minutes, weights, loc, scale):
    posterior = vipl.normalize(eruption(weights, loc, scale), {"minutes": minutes}, Enumeration())
    return posterior.marginals("k").probs[1]


def density(minutes, weights, loc, scale):
    one = vipl.marginal(eruption(weights, loc, scale), "minutes", Enumeration())
    return jnp.exp(one.assess({"minutes": minutes}).log_prob)


def over_draws_and_grid(fn):
    def at_grid(weights, loc, scale):
        return jax.vmap(lambda x: fn(x, weights, loc, scale))(grid)

    return jax.jit(jax.vmap(at_grid))(draws["weights"], draws["loc"], draws["scale"])


fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
left.hist(minutes, bins=40, density=True, color="0.85")
for ax, fn in ((left, density), (right, responsibility)):
    values = over_draws_and_grid(fn)
    ax.fill_between(grid, *np.quantile(values, [0.055, 0.945], axis=0), color="C0", alpha=0.3, linewidth=0)
    ax.plot(grid, np.mean(values, 0), color="C0")
    ax.set_xlabel("duration, minutes")
left.set(ylabel="density", title="Posterior predictive density, 89 % band")
right.set(ylabel="probability", title="The eruption is of the long kind")
fig.tight_layout()

# %% [markdown]
# On the left the density follows the histogram, whatever the labels are. On the right most durations are of one
# kind for sure; the band is wide only near three minutes, where there are few data.
#
# ## Keeping the assignments
#
# Summing out is not always possible: with many discrete variables that depend on each other there are too many
# joint values. Then the guide gets probabilities for `k`. We take the model with kinds and make a guide of two:
# `FullRank` for the real choices, `MeanField` for the 272 assignments. The estimator of the assignments is an
# argument.

# %%
model = with_kinds(n)
real = guides.FullRank(model, data, addresses=["weights", "loc", "scale"])


def guide_with(estimator):
    kinds = guides.MeanField(model, data, addresses=[("eruption", "k")], discrete=estimator)
    return guides.combine({"real": real, "kinds": kinds})


params = guide_with(Enumerate()).init(key, start={"loc": jnp.array([2.0, 4.3]), "scale": jnp.array([0.3, 0.4])})
print(jax.tree.map(jnp.shape, params))

# %% [markdown]
# All estimators below are unbiased: they differ in the noise of the gradient and in what it costs. We measure both,
# at the same parameters, with eight draws of the guide for each gradient. The noise is the standard deviation of
# the derivative in a logit of an assignment, averaged (in squares) over the 272.

# %% short="estimators = {name: estimators[name] for name in list(estimators)[:1]}"
estimators = {
    "Enumerate()": Enumerate(),
    "MeasureValued()": MeasureValued(),
    "Score(LeaveOneOut())": Score(LeaveOneOut()),
    "Score()": Score(),
}
NUM_GRADIENTS = 500


# %%
def noise_and_time(estimator):
    guide = guide_with(estimator)
    bound = vipl.expectation(lambda params: vipl.objectives.elbo(model, guide(params), data))

    @jax.jit
    def gradients(keys):
        def logits(key):
            _, gradient = bound.value_and_grad(key, params, num_samples=8)
            return gradient["kinds"]["eruption"]["k"]["logits"]

        return jax.lax.map(logits, keys)

    keys = jax.random.split(key, NUM_GRADIENTS)
    noise = float(jnp.sqrt(jnp.mean(jnp.var(gradients(keys), axis=0))))
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        jax.block_until_ready(gradients(keys))
        seconds.append(time.perf_counter() - begun)
    return noise, min(seconds) / NUM_GRADIENTS * 1e3


noise = {}
print(f"{'estimator':<22} {'noise':>8} {'ms per gradient':>16}")
for name, estimator in estimators.items():
    noise[name], milliseconds = noise_and_time(estimator)
    print(f"{name:<22} {noise[name]:8.3f} {milliseconds:16.2f}")

# %% short="FIT_STEPS = 100"
FIT_STEPS = 3000

# %% [markdown]
# - `Enumerate` sums over both kinds of each eruption. Eruptions are lanes of a `vmap` and the objective is a sum
#   over them, so that this costs 2 evaluations of one eruption each, and not $2^{272}$. Its noise is that of the
#   real choices alone.
# - `MeasureValued` draws a kind and runs the other kind as well, and takes the difference: with two kinds that is
#   nearly as good.
# - `Score` (REINFORCE) multiplies the score by the part of the objective that the eruption reaches. `LeaveOneOut`
#   subtracts the mean of the other draws, which is why it wants at least two.
#
# `MeanField` takes `Enumerate` here by itself, and `infer` makes this very pair of guides when the model has real
# and discrete choices. Here we call the parts: a bound, a fit, and a `Posterior` that puts them together.

# %%
guide = guide_with(Enumerate())


@vipl.expectation
def bound(params):
    return vipl.objectives.elbo(model, guide(params), data)


rate = optax.cosine_decay_schedule(0.1, FIT_STEPS)
found = vipl.fit(bound, params, optax.adam(rate, b2=0.9), key=key, num_steps=FIT_STEPS, num_samples=4, progress=False)
kept = vipl.Posterior(model, data, guide, found.params)
for name, posterior in {"summed out": short_first, "kept": kept}.items():
    draws = posterior.sample(key, 4000)
    sds = [np.std(draws[a], axis=0)[i] for a, i in (("weights", 1), ("loc", 0), ("loc", 1), ("scale", 0), ("scale", 1))]
    print(f"{name:<11} bound {float(posterior.improve(key, 4000).bound):8.2f}   sds", np.round(sds, 3))

# %% [markdown]
# The bound is lower when assignments are kept, and the sds of the two scales, which come last, are smaller. In the
# exact posterior the assignments depend on the parameters; a guide in which they are independent has to pay for
# that. **This is why one sums out where one can.** Here the components hardly overlap, and the price is small. The
# more they overlap, the larger it gets.
#
# For *fixed* parameters the assignments are independent, and the same guide is exact: at its optimum the bound is
# the log likelihood itself, and its probabilities are the responsibilities. That is our first exact check.

# %%
at = jax.tree.map(lambda x: jnp.mean(x, axis=0), short_first.sample(key, 4000))


@vipl.gen
def kinds_alone(n):
    jax.vmap(lambda: sample("eruption", eruption(at["weights"], at["loc"], at["scale"])), axis_size=n)()


kinds = guides.MeanField(kinds_alone(n), data)


@vipl.expectation
def bound_of_kinds(params):
    return vipl.objectives.elbo(kinds_alone(n), kinds(params), data)


fitted = vipl.fit(bound_of_kinds, kinds.init(key), optax.adam(0.3, b2=0.9), key=key, num_steps=400, progress=False)
log_likelihood = special.logsumexp(
    np.log(at["weights"]) + stats.norm.logpdf(minutes[:, None], at["loc"], at["scale"]), axis=1
).sum()
probabilities = jax.nn.sigmoid(fitted.params["eruption"]["k"]["logits"])
exact = jax.jit(jax.vmap(lambda y: responsibility(y, at["weights"], at["loc"], at["scale"])))(jnp.asarray(minutes))
print(f"fitted bound {fitted.values[-1]:.3f}, exact log likelihood {log_likelihood:.3f}")
print(f"largest difference of a probability: {float(jnp.max(jnp.abs(probabilities - exact))):.4f}")
assert abs(fitted.values[-1] - log_likelihood) < 0.05

# %% [markdown]
# ## Zero-inflated counts
#
# Leroux and Puterman (1992) counted the movements of a fetal lamb in 240 intervals of five seconds. There are too
# many zeros for a Poisson distribution. In the usual model the lamb is asleep in some intervals, and then the count
# is zero; else it is Poisson. The indicator is summed out in the same way as above. NumPyro has the result as
# `ZeroInflatedPoisson`, so that you can see that the two agree; `marginal` also works where no such class exists.

# %%
counts = np.repeat([0, 1, 2, 3, 4, 7], [182, 41, 12, 2, 2, 1])


@vipl.gen
def interval(p, rate):
    asleep = sample("asleep", dist.Bernoulli(p))
    sample("count", dist.Poisson(rate * (1 - asleep)))


def log_prob(count):
    return vipl.marginal(interval(0.6, 0.9), "count", Enumeration()).assess({"count": count}).log_prob


print("marginal:           ", np.round(jax.vmap(log_prob)(jnp.arange(5)), 4))
print("ZeroInflatedPoisson:", np.round(dist.ZeroInflatedPoisson(0.6, 0.9).log_prob(jnp.arange(5)), 4))


# %%
@vipl.gen
def lamb(num_intervals):
    p = sample("p", dist.Beta(1.0, 1.0))
    rate = sample("rate", dist.Gamma(2.0, 1.0))
    count = vipl.marginal(interval(p, rate), "count", Enumeration())
    jax.vmap(lambda: sample("interval", count), axis_size=num_intervals)()


movements = {"interval": {"count": counts}}
posterior = vipl.infer(lamb(counts.size), movements, key=key)
print(posterior.summary())

# %% [markdown]
# There are two parameters, so that a grid gives the exact posterior. The Gaussian guide lives in unconstrained
# coordinates (logit of `p`, log of `rate`), and its contours bend with them. `improve` weights its draws towards
# the exact posterior.

# %%
p_grid, rate_grid = np.linspace(0.0025, 0.9975, 400), np.linspace(0.3, 2.5, 400)
p, rate = p_grid[:, None], rate_grid[None, :]
values, how_often = np.unique(counts, return_counts=True)
log_joint = stats.beta.logpdf(p, 1, 1) + stats.gamma.logpdf(rate, 2.0)
for value, times in zip(values, how_often, strict=True):
    log_joint = log_joint + times * np.log(p * (value == 0) + (1 - p) * stats.poisson.pmf(value, rate))
weights = np.exp(log_joint - log_joint.max())
weights /= weights.sum()
exact_mean = (weights * p).sum()
exact_sd = np.sqrt((weights * (p - exact_mean) ** 2).sum())

improved = posterior.improve(key, 4000)
drawn = posterior.sample(key, 4000)
guide_mean = float(np.mean(drawn["p"]))
improved_mean = float(improved.expectation(lambda z: z["p"]))
print(f"mean of p: exact {exact_mean:.4f} (sd {exact_sd:.4f}), guide {guide_mean:.4f}, improved {improved_mean:.4f}")

fig, ax = plt.subplots(figsize=(5.5, 3.8))
mass = np.sort(weights.ravel())[::-1]
levels = [mass[np.searchsorted(np.cumsum(mass), level)] for level in (0.99, 0.89, 0.5)]
ax.contour(p_grid, rate_grid, weights.T, levels=levels, colors="k", linewidths=1)
ax.scatter(drawn["p"][:1000], drawn["rate"][:1000], s=3, alpha=0.5, color="C0", label="draws of the guide")
ax.plot([], [], color="k", linewidth=1, label="exact: 50, 89, 99 % of the mass")
ax.set(
    title="Zero-inflated Poisson", xlabel="p, share of intervals asleep", ylabel="rate, movements per interval awake"
)
ax.set(xlim=(0.2, 0.85), ylim=(0.4, 1.8))
ax.legend(frameon=False, loc="upper left")
fig.tight_layout()

# %% [markdown]
# Look at the ridge: many zeros are explained by a larger `p`, or by a smaller `rate`. A guide that keeps the 240
# indicators independent of `p` and `rate` cannot have this ridge in full: given the indicators, `p` and `rate` are
# independent.
#
# If you do keep the indicators, mind one thing: an interval with movements cannot be asleep, and a guide that gives
# this any probability has a bound of minus infinity. Observe what is known (`asleep = 0` where the count is
# positive), and leave the others latent.
#
# The last cell compares with the grid: the mean after weighting, and the guide's own.

# %%
assert abs(improved_mean - exact_mean) < 0.05 * exact_sd + 0.002
assert abs(guide_mean - exact_mean) < 0.2 * exact_sd
