# %% [markdown]
# # Time series
#
# A model along time is a `lax.scan` whose step calls `sample`. This notebook has two of them:
#
# 1. **A hidden Markov model**: the states are discrete, and the forward algorithm sums them out exactly.
#    `ForwardBackward` finds that algorithm in the program that you wrote.
# 2. **Stochastic volatility**: the states are real numbers and the likelihood is not Gaussian, so that nothing can
#    be integrated out. The guide has to be one along time, and it matters a great deal which.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import optax
from jax import lax
from scipy import special, stats

import vipl
from vipl import guides, objectives, sample
from vipl.inference import SMC, ForwardBackward, MultinomialDropped

key = jax.random.key(0)

# %% [markdown]
# ## A hidden Markov model: years of many earthquakes
#
# The data count the earthquakes of magnitude 7 or more in the world in each year from 1900 to 2006 (Zucchini and
# MacDonald, 2009). They vary more than a Poisson distribution allows, and high years come together. In the model
# the earth is in a quiet or an active state, and each state has its rate.
#
# The step of the scan takes the state before. Before the first year there is no state, so the rows of `transitions`
# are three: from quiet, from active, and from nowhere.

# %%
years = np.arange(1900, 2007)
counts = np.array(
    """
    13 14 8 10 16 26 32 27 18 32 36 24 22 23 22 18 25 21 21 14 8 11 14 23 18 17 19 20 22 19 13 26 13 14 22 24 21 22 26 21 23
    24 27 41 31 27 35 26 28 36 39 21 17 22 17 19 15 34 10 15 22 18 15 20 15 22 19 16 30 27 29 23 20 16 21 21 25 16 18 15 18
    14 10 15 8 15 6 11 8 7 18 16 13 12 13 20 15 16 12 18 15 16 13 15 16 11 11
    """.split(),
    dtype=int,
)
NOWHERE = 2


@vipl.gen
def states_and_counts(rates, stay, num_years):
    transitions = jnp.array([[stay[0], 1 - stay[0]], [1 - stay[1], stay[1]], [0.5, 0.5]])

    def year(state, _):
        state = sample("state", dist.Categorical(transitions[state]))
        sample("count", dist.Poisson(rates[state]))
        return state, None

    lax.scan(year, NOWHERE, None, length=num_years)


@vipl.gen
def earthquakes(num_years):
    rates = sample("rates", dist.Gamma(4.0, 0.2).expand([2]))
    stay = sample("stay", dist.Beta(9.0, 1.0).expand([2]))
    sample("years", vipl.marginal(states_and_counts(rates, stay, num_years), "count", ForwardBackward()))


data = {"years": {"count": counts}}
print(vipl.sites(earthquakes(len(years)), data))

# %% [markdown]
# `marginal(program, "count", ForwardBackward())` is the program without its states. Its density costs T S²
# evaluations of a step, where a sum over all paths has S^T terms. What is left are four real numbers. The start
# names the states: the first is quiet.

# %%
posterior = vipl.infer(earthquakes(len(years)), data, key=key, start={"rates": jnp.array([15.0, 25.0])})
print(posterior.summary())

# %% [markdown]
# The states stay for long: both probabilities are above 0.9 or near it. k-hat says whether the Gaussian guide,
# which lives in log and logit coordinates, can be trusted.
#
# The states come back exactly, by the backward part of the algorithm: `normalize(...).marginals("state")` has the
# probabilities of the states in each year given all counts. We average them over draws of the parameters.

# %%
draws = jax.tree.map(lambda x: x[:200], posterior.sample(key, 4000))


def active(rates, stay):
    smoothed = vipl.normalize(states_and_counts(rates, stay, len(years)), {"count": counts}, ForwardBackward())
    return smoothed.marginals("state").probs[:, 1]


probability = jnp.mean(jax.jit(jax.vmap(active))(draws["rates"], draws["stay"]), axis=0)

fig, (above, below) = plt.subplots(2, 1, figsize=(8, 4), sharex=True, height_ratios=[2, 1])
above.plot(years, counts, "o-", color="0.4", markersize=3, linewidth=0.7)
for k, name in enumerate(("quiet", "active")):
    low, high = np.quantile(draws["rates"][:, k], [0.055, 0.945])
    above.axhspan(low, high, color=f"C{k}", alpha=0.3, linewidth=0, label=f"rate, {name}")
above.set(ylabel="earthquakes in a year", title="Earthquakes of magnitude 7 or more")
above.legend(frameon=False, loc="upper right")
below.fill_between(years, probability, color="C1", alpha=0.6, linewidth=0)
below.set(xlabel="year", ylabel="P(active)", ylim=(0, 1))
fig.tight_layout()

# %% [markdown]
# **The exact check.** At the posterior mean of the parameters the log density of all counts must be what the
# forward algorithm gives. Written by hand in NumPy, it is a loop over years in which the vector of log
# probabilities is multiplied by the transition matrix:

# %%
at = jax.tree.map(lambda x: np.mean(np.asarray(x, float), axis=0), posterior.sample(key, 4000))


def forward(counts, rates, stay):
    transition = np.array([[stay[0], 1 - stay[0]], [1 - stay[1], stay[1]]])
    alpha = np.log([0.5, 0.5]) + stats.poisson.logpmf(counts[0], rates)
    for count in counts[1:]:
        alpha = special.logsumexp(alpha[:, None] + np.log(transition), axis=0) + stats.poisson.logpmf(count, rates)
    return special.logsumexp(alpha)


by_hand = forward(counts, at["rates"], at["stay"])
chain = vipl.marginal(states_and_counts(at["rates"], at["stay"], len(years)), "count", ForwardBackward())
evidence = chain.assess({"count": counts}).log_prob
print(f"by hand {by_hand:.4f}, ForwardBackward {float(evidence):.4f}")
assert abs(evidence - by_hand) < 2e-3

# %% [markdown]
# For the same chain as one distribution, parallel in time and with missing years, see
# `vipl.distributions.HiddenMarkov`; for states that are Gaussian, `vipl.inference.Kalman` stands where
# `ForwardBackward` stands here.
#
# ## Stochastic volatility
#
# The returns of an asset have mean zero, and a variance that changes slowly. Its logarithm `h` is an autoregressive
# process:
#
# $$h_t = \mu + \phi (h_{t-1} - \mu) + \sigma \varepsilon_t, \qquad r_t \sim \mathcal N(0, e^{h_t}).$$
#
# We simulate 400 returns, in percent, so that the path is known.

# %%
NUM_DAYS = 400
rng = np.random.default_rng(0)
mu, phi, sigma = 0.0, 0.96, 0.3
path = [mu + sigma / np.sqrt(1 - phi**2) * rng.normal()]
for _ in range(NUM_DAYS - 1):
    path.append(mu + phi * (path[-1] - mu) + sigma * rng.normal())
path = np.array(path)
returns = np.exp(path / 2) * rng.normal(size=NUM_DAYS)


def parameters():
    mu = sample("mu", dist.Normal(0.0, 1.0))
    phi = sample("phi", dist.Beta(20.0, 1.5))
    sigma = sample("sigma", dist.LogNormal(-1.5, 0.5))
    return mu, phi, sigma


def moments(before, is_first, mu, phi, sigma):
    """Mean and sd of h, given that of the day before; those of the stationary process on the first day."""
    mean = jnp.where(is_first, mu, mu + phi * (before - mu))
    return mean, jnp.where(is_first, sigma / jnp.sqrt(1 - phi**2), sigma)


@vipl.gen
def days(mu, phi, sigma, num_days):
    def day(before, is_first):
        h = sample("h", dist.Normal(*moments(before, is_first, mu, phi, sigma)))
        sample("r", dist.Normal(0.0, jnp.exp(h / 2)))
        return h, None

    lax.scan(day, 0.0, jnp.arange(num_days) == 0)


@vipl.gen
def volatility(num_days):
    sample("path", days(*parameters(), num_days))


print(vipl.sites(volatility(NUM_DAYS), {"path": {"r": returns}}))

# %% [markdown]
# ### A guide with independent days
#
# There are 403 real numbers. For that many `infer` takes `MeanField` by itself.

# %% short="FIT_STEPS, FILTER_STEPS, NUM_WEIGHTED, ALLOWED = 20, 60, 200, 1.5"
FIT_STEPS, FILTER_STEPS, NUM_WEIGHTED, ALLOWED = 4000, 400, 1000, 0.5

# %%
options = {"key": key, "optimizer": optax.adam(optax.cosine_decay_schedule(0.03, FIT_STEPS)), "num_steps": FIT_STEPS}
independent = vipl.infer(volatility(NUM_DAYS), {"path": {"r": returns}}, guide=guides.MeanField, **options)


def row(name, draws):
    moments = [f"{float(jnp.mean(draws[a])):6.3f} +- {float(jnp.std(draws[a])):.3f}" for a in ("mu", "phi", "sigma")]
    print(f"{name:<34}", "   ".join(moments))


print(f"{'':<36} mu                phi               sigma")
row("MeanField", independent.sample(key, 4000))
print(independent.improve(key, 4000).verdict())

# %% [markdown]
# The verdict says that this is not reliable, and it is right: with `phi` near 0.4 the volatility of one day says
# next to nothing about the next, which is not what the data were made with (0.96). The reason is the independence.
# In the posterior neighbouring days are strongly correlated. The guide cannot be, and the bound then prefers
# parameters for which they would not be.
#
# ### A guide along time
#
# `Structured` reads the loop of the model: each day is a Gaussian given the day before and the three parameters. Its
# cost is linear in the number of days, and `infer` fits it by natural gradients.

# %%
structured = vipl.infer(volatility(NUM_DAYS), {"path": {"r": returns}}, guide=guides.Structured, key=key)
row("Structured", structured.sample(key, 4000))
print(structured.improve(key, 4000).verdict())

# %% [markdown]
# This is the right kind of path: `phi` is near 0.95 now. What is left is the sd of `sigma`, which is much too small.
# In a Gaussian the days given the parameters vary by the same amount, whatever `sigma` is; in the posterior they
# vary with `sigma`. k-hat sees it.
#
# ### The same model in other coordinates
#
# The other advice of the verdict is to write effects the other way, non-centred. Here this means: the choices are the
# innovations `z`, and
# `h` is computed from them. `vipl.deterministic` keeps `h`.


# %%
@vipl.gen
def non_centred(num_days):
    mu, phi, sigma = parameters()

    def day(before, is_first):
        mean, sd = moments(before, is_first, mu, phi, sigma)
        h = mean + sd * sample("z", dist.Normal(0.0, 1.0))
        sample("r", dist.Normal(0.0, jnp.exp(h / 2)))
        return h, h

    _, h = lax.scan(day, 0.0, jnp.arange(num_days) == 0)
    vipl.deterministic("h", h)


innovations = vipl.infer(non_centred(NUM_DAYS), {"r": returns}, guide=guides.MeanField, **options)
row("MeanField, non-centred", innovations.sample(key, 4000))
print(innovations.improve(key, 4000).verdict())

# %% [markdown]
# Much better than `MeanField` was, and a bound that is higher by tens of nats. A guide with independent innovations has
# correlated days.
# But the verdict still warns: the sds of the parameters are too small, as those of `MeanField` are where the
# posterior is correlated.
#
# ### Integrating the path out
#
# Only three numbers are of lasting interest. As the states of the Markov model above, the path can be integrated
# out; not exactly, but by a particle filter, whose estimate of the likelihood is unbiased. It stands where
# `ForwardBackward` stood: `marginal(days(...), "r", SMC(64))`.
#
# - **The bound stays a bound**, because the log of an unbiased estimate is too low on average (Maddison et al.,
#   2017).
# - Particles are resampled only where their weights have become uneven (`ess_threshold`), which adds less noise.
#   `MultinomialDropped` leaves out the derivative through the choice of particles: the gradient is a little biased,
#   and much less noisy. That does not harm the result, because of the next point.
# - **`improve` stays exact in the limit**: importance weights with unbiased estimates in them are importance
#   weights (Tran et al., 2013).
#
# A guide needs addresses and supports only. So we make it for the program of the three parameters alone. To fit it,
# 64 particles do; for the weights we take 256, because the noise of the estimate is noise of the weights.


# %%
@vipl.gen
def filtered(num_days, num_particles):
    particles = SMC(num_particles, resampling=MultinomialDropped(), ess_threshold=0.5)
    sample("path", vipl.marginal(days(*parameters(), num_days), "r", particles))


observed = {"path": {"r": returns}}
guide = guides.FullRank(vipl.gen(parameters)(), {})


@vipl.expectation
def bound(params):
    return objectives.elbo(filtered(NUM_DAYS, 64), guide(params), observed)


fitted = vipl.fit(
    bound,
    guide.init(key, start={"mu": 0.0, "phi": 0.9, "sigma": 0.3}),
    optax.adam(optax.cosine_decay_schedule(0.05, FILTER_STEPS)),
    key=key,
    num_steps=FILTER_STEPS,
    num_samples=4,
    average=0.2,
    progress=False,
)
posterior = vipl.Posterior(filtered(NUM_DAYS, 256), observed, guide, fitted.averaged)
improved = posterior.improve(key, NUM_WEIGHTED)
weighted = improved.sample(key, 4000)
print(improved.verdict())

# %% [markdown]
# ### What is right?
#
# The reference is a long run of NUTS: 10,000 draws of the non-centred model with NumPyro, two chains, acceptance
# 0.9, effective sample sizes above 3800, 21 divergent transitions. It takes minutes, so its numbers are written down
# here.

# %%
NUTS = {"mu": (-0.151, 0.352), "phi": (0.9583, 0.0222), "sigma": (0.2497, 0.0622)}

print(f"{'':<36} mu                phi               sigma")
row("MeanField", independent.sample(key, 4000))
row("Structured", structured.sample(key, 4000))
row("MeanField, non-centred", innovations.sample(key, 4000))
row("path integrated out", improved.choices)
row("path integrated out, weighted", weighted)
print(f"{'NUTS':<34}", "   ".join(f"{mean:6.3f} +- {sd:.3f}" for mean, sd in NUTS.values()))

# %% [markdown]
# The path comes back as the assignments of a mixture do: for each draw of the parameters, the particle filter draws
# a path. `normalize(days(...), {"r": returns}, SMC(64))` is the program that does it.

# %%
NUM_PATHS = 200


def one_path(key, z):
    smoothed = vipl.normalize(days(z["mu"], z["phi"], z["sigma"], NUM_DAYS), {"r": returns}, SMC(64))
    return smoothed.simulate(key).choices["h"]


few = jax.tree.map(lambda x: x[:NUM_PATHS], weighted)
paths = {
    "MeanField": independent.sample(key, 4000)["path"]["h"][:NUM_PATHS],
    "Structured": structured.sample(key, 4000)["path"]["h"][:NUM_PATHS],
    "Path integrated out": jax.jit(jax.vmap(one_path))(jax.random.split(key, NUM_PATHS), few),
}
fig, axes = plt.subplots(3, 1, figsize=(8, 6.5), sharex=True, sharey=True)
for ax, (name, h) in zip(axes, paths.items(), strict=True):
    low, high = np.quantile(np.exp(h / 2), [0.055, 0.945], axis=0)
    ax.plot(np.abs(returns), ".", color="0.7", markersize=3, label="|return|")
    ax.fill_between(np.arange(NUM_DAYS), low, high, color="C0", alpha=0.4, linewidth=0, label="89 % of draws")
    ax.plot(np.exp(path / 2), color="k", linewidth=1, label="truth")
    ax.set(ylabel="volatility, percent", title=name, ylim=(0, 5))
axes[0].legend(frameon=False, loc="upper right", ncols=3)
axes[-1].set_xlabel("day")
fig.tight_layout()

# %% [markdown]
# Above, the band follows each return up and down, because the days do not know of each other. In the two others it is
# smooth, and the truth lies within it most of the time. For the path, `Structured` does; for the sd of `sigma`, the
# filter and its weights are needed.
#
# The last cell compares the weighted posterior means with NUTS, in posterior sds.

# %%
for name, (mean, sd) in NUTS.items():
    off = abs(float(jnp.mean(weighted[name])) - mean) / sd
    print(f"{name:<6} is off by {off:.2f} sd")
    assert off < ALLOWED
