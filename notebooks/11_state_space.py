# %% [markdown]
# # State-space models
#
# A state-space model is a program with one `lax.scan`: in each step a hidden state moves, and something is seen of it.
# What can be done with the hidden path depends on what it is:
#
# | the states are | algorithm | the likelihood is |
# | --- | --- | --- |
# | Gaussian, and linear | `Kalman()` | exact |
# | discrete | `ForwardBackward()` | exact |
# | anything | `SMC(num_particles)` | an unbiased estimate |
#
# In vipl these are objects. One writes the program, and then says `marginal(program, "seen", algorithm)`: the path is
# integrated out. The result is a distribution, its density has gradients, and it can stand in any objective. This
# notebook takes the best known series of the field through the first two, and then through a model that mixes them, for
# which only the third is left. Notebook 6 has more on guides for paths.

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
from vipl import LeaveOneOut, Score, marginal, normalize, objectives, sample
from vipl.inference import SMC, ForwardBackward, Importance, Kalman, Multinomial, MultinomialDropped

key = jax.random.key(0)

# %% [markdown]
# ## The Nile, 1871 to 1970
#
# The annual flow at Aswan, in units of 10⁸ m³ (Cobb, 1978; Durbin and Koopman, 2012). We divide by 100.

# %%
flow = (
    np.array(
        """
        1120 1160 963 1210 1160 1160 813 1230 1370 1140 995 935 1110 994 1020 960 1180 799 958 1140 1100 1210 1150 1250
        1260 1220 1030 1100 774 840 874 694 940 833 701 916 692 1020 1050 969 831 726 456 824 702 1120 1100 832 764 821
        768 845 864 862 698 845 744 796 1040 759 781 865 845 944 984 897 822 1010 771 676 649 846 812 742 801 1040 860
        874 848 890 744 749 838 1050 918 986 797 923 975 815 1020 906 901 1170 912 746 919 718 714 740
        """.split(),
        float,
    )
    / 100
)
years = np.arange(1871, 1971)
data = {"flow": flow}

# %% [markdown]
# ## A Gaussian chain: Kalman
#
# The *local level* model: the level walks at random, and the flow is the level with noise. The first level is from a
# wide prior. There are two unknown scales.


# %%
@vipl.gen
def local_level(level_sd, flow_sd, num_years, start=0.0, start_sd=10.0):
    def year(level, is_first):
        level = sample("level", dist.Normal(level, jnp.where(is_first, start_sd, level_sd)))
        sample("flow", dist.Normal(level, flow_sd))
        return level, None

    lax.scan(year, start, jnp.arange(num_years) == 0)


def levels(phi):
    return local_level(jnp.exp(phi["level"]), jnp.exp(phi["flow"]), len(years))


@vipl.expectation
def likelihood(phi):
    return marginal(levels(phi), "flow", Kalman()).assess(data).log_prob


PHI = {"level": jnp.log(0.5), "flow": jnp.log(1.0)}
times = np.arange(1, 101)
covariance = 100.0 + 0.25 * (np.minimum(times[:, None], times) - 1) + np.eye(100)
by_hand = stats.multivariate_normal(np.zeros(100), covariance).logpdf(flow)
print(f"Kalman {likelihood.estimate(key, PHI):.3f}, a Gaussian of 100 dimensions {by_hand:.3f}")

# %% [markdown]
# The filter costs 100 small steps; the other way takes a matrix of 100 x 100. Nothing is drawn, so that the objective
# has no noise, and its gradient goes through the filter. Maximum likelihood is a `fit`:

# %%
best = vipl.fit(likelihood, PHI, optax.adam(0.05), key=key, num_steps=400, progress=False).params
variances = {name: float(jnp.exp(2 * x)) * 1e4 for name, x in best.items()}
print(f"variance of the level {variances['level']:.0f}, of the flow {variances['flow']:.0f}")

# %% [markdown]
# Durbin and Koopman (section 2.10) give 1469 and 15099, with an initial level of which nothing is known.
#
# `normalize(...).marginals("level")` are the smoothed levels: Normals, one for each year, given *all* flows.

# %%
smoothed = normalize(levels(best), data, Kalman()).marginals("level")
mean, sd = np.asarray(smoothed.mean), np.sqrt(smoothed.variance)

# %% [markdown]
# ## A discrete chain: forward and backward
#
# Another story for the same data: there was one level, then another, and the change came in some year. (A dam was built
# at Aswan, from 1899 on.) The state is 0 before the change and 1 after it; the chain cannot go back.


# %%
@vipl.gen
def one_change(num_years):
    def year(state, _):
        state = sample("state", dist.Categorical(jnp.array([[0.99, 0.01], [0.0, 1.0]])[state]))
        sample("flow", dist.Normal(jnp.array([11.0, 8.5])[state], 1.25))
        return state, None

    lax.scan(year, 0, None, length=num_years)


evidence = marginal(one_change(len(years)), "flow", ForwardBackward()).assess(data).log_prob
changed = normalize(one_change(len(years)), data, ForwardBackward()).marginals("state").probs[:, 1]

# By hand: the change can come in any of 100 years, or never, so that there are only 101 paths.
before, after = (stats.norm(level, 1.25).logpdf(flow) for level in (11.0, 8.5))
paths = np.array([before[:t].sum() + after[t:].sum() + t * np.log(0.99) + (t < 100) * np.log(0.01) for t in range(101)])
print(f"forward-backward {evidence:.4f}, all paths {special.logsumexp(paths):.4f}")
print(f"most probable first year of the new level: {years[np.argmax(paths)]}")

# %%
fig, (above, below) = plt.subplots(2, 1, figsize=(8, 4.2), sharex=True, height_ratios=[2, 1])
above.plot(years, flow, ".", color="0.5")
above.fill_between(years, mean - 1.6 * sd, mean + 1.6 * sd, color="C0", alpha=0.3, linewidth=0)
above.plot(years, mean, color="C0")
above.set(ylabel="10¹⁰ m³ a year", title="Kalman: the level given all flows, with an 89 % band")
below.fill_between(years, changed, color="C1", alpha=0.6, linewidth=0)
below.set(xlabel="year", ylabel="probability", ylim=(0, 1.05), title="Forward-backward: the level has changed")
fig.tight_layout()

# %% [markdown]
# **Look at** the years around 1899. The random walk needs several years to get down, as its steps are small. The chain
# with one change takes a year or two. Both likelihoods are exact, and the second is higher by about ten nats, though
# its levels were set by eye.
#
# ## Particles inside an objective
#
# `SMC(K)` moves K particles through the same scan, weighs them by what was seen, and resamples. The product of the mean
# weights is an unbiased estimate of the likelihood; its logarithm is too low on average. So $E[\log \hat Z]$ is a
# bound, as an objective called the *filtering* one (Maddison et al., 2017). It is `objectives.fivo(model, data,
# SMC(K))`, or `marginal(model, "flow", SMC(K))` with `assess`.
#
# Here the exact value is known, by `Kalman`. The same K particles *without* resampling are `Importance(K)`:

# %% short="PARTICLES, NUM_ESTIMATES = (4,), 50"
PARTICLES, NUM_ESTIMATES = (4, 16, 64), 100


# %%
def bound(algorithm):
    return vipl.expectation(lambda phi: objectives.fivo(levels(phi), data, algorithm))


exact = float(likelihood.estimate(key, best))
fig, ax = plt.subplots(figsize=(7, 3.2))
for name, make in {"Importance(K)": Importance, "SMC(K)": SMC}.items():
    means = []
    for k in PARTICLES:
        objective = bound(make(k))
        draws = jax.jit(jax.vmap(lambda key, o=objective: o.estimate(key, best)))
        means.append(float(draws(jax.random.split(key, NUM_ESTIMATES)).mean()))
    ax.plot(PARTICLES, exact - np.array(means), "o-", markersize=4, label=name)
ax.set(xscale="log", yscale="log", xlabel="particles K", ylabel="nats")
ax.set_title("How far the bound is below the log likelihood")
ax.legend(frameon=False)
fig.tight_layout()

# %% [markdown]
# Without resampling, particles are whole paths of a hundred steps, drawn without a look at the data; 64 of them are
# still tens of nats below. With resampling 64 particles are within a few nats.
#
# ### Its gradient
#
# Resampling is a discrete choice, and its probabilities depend on the parameters. `Multinomial()` keeps its score: the
# gradient is unbiased for that of the bound, and noisy. A baseline helps: `Multinomial(Score(LeaveOneOut()))` subtracts
# the mean of the other runs. `MultinomialDropped()` leaves the score out, as most implementations do: biased, and
# quieter. We measure all three on the first ten years, with a known start, beside a difference quotient of the bound
# itself. Each line averages over eight runs a gradient.

# %% short="NUM_GRADIENTS, choices = 100, {'Multinomial()': Multinomial()}"
NUM_GRADIENTS = 10_000
choices = {
    "Multinomial()": Multinomial(),
    "Multinomial(leave one out)": Multinomial(Score(LeaveOneOut())),
    "MultinomialDropped()": MultinomialDropped(),
}


# %%
def ten_years(resampling):
    def program(log_sd):
        model = local_level(jnp.exp(log_sd), 1.1, 10, start=11.0, start_sd=0.5)
        return objectives.fivo(model, {"flow": flow[:10]}, SMC(8, resampling=resampling))

    return vipl.expectation(program)


def mean_and_error(draw):
    draws = jax.jit(lambda keys: lax.map(draw, keys, batch_size=100))(jax.random.split(key, NUM_GRADIENTS))
    return float(draws.mean()), float(draws.std()) / NUM_GRADIENTS**0.5


def value_at(log_sd):
    return mean_and_error(lambda key: ten_years(Multinomial()).estimate(key, log_sd, num_samples=8))


AT, STEP = float(np.log(0.6)), 0.1
(up, up_error), (down, down_error) = value_at(AT + STEP), value_at(AT - STEP)
error = np.hypot(up_error, down_error) / (2 * STEP)
print(f"{'difference quotient':<30}{(up - down) / (2 * STEP):7.3f} +- {error:.3f}")
for name, resampling in choices.items():
    mean, error = mean_and_error(lambda key, r=resampling: ten_years(r).value_and_grad(key, AT, num_samples=8)[1])
    print(f"{name:<30}{mean:7.3f} +- {error:.3f}, sd of one gradient {error * NUM_GRADIENTS**0.5:.2f}")

# %% [markdown]
# The unbiased ones agree with the quotient, within their errors; the last one is off. The noise of the score grows with
# the number of steps, so that for long series one drops it, and knows that one does.
#
# ### A proposal that looks
#
# The particles above move blindly, and are corrected afterwards. A proposal may look at the flow of the year, and its
# parameters can be fitted *with* those of the model, by the same bound (Naesseth et al., 2018). Sixteen blind particles
# were about ten nats below the log likelihood; here are eight that look.


# %%
def looking(psi):
    @vipl.gen
    def proposal(known):
        share = jax.nn.sigmoid(psi["share"])
        middle = (1 - share) * known.previous["level"] + share * known["flow"]
        is_first = known.step == 0
        mean, sd = jnp.where(is_first, known["flow"], middle), jnp.where(is_first, 1.0, jnp.exp(psi["log_sd"]))
        sample("level", dist.Normal(mean, sd))

    return proposal


@vipl.expectation
def learned(params):
    phi, psi = params
    return objectives.fivo(levels(phi), data, SMC(8, looking(psi), MultinomialDropped(), ess_threshold=0.5))


# %% short="NUM_STEPS = 20"
NUM_STEPS = 600

# %%
start = (PHI, {"share": jnp.array(0.0), "log_sd": jnp.array(-0.5)})
optimizer = optax.adam(optax.cosine_decay_schedule(0.05, NUM_STEPS))
options = {"key": key, "num_steps": NUM_STEPS, "num_samples": 4, "progress": False}
phi, psi = vipl.fit(learned, start, optimizer, **options).params
estimates = jax.jit(jax.vmap(lambda key: learned.estimate(key, (phi, psi))))(jax.random.split(key, NUM_ESTIMATES))
found = {name: float(jnp.exp(2 * x)) * 1e4 for name, x in phi.items()}
print(f"bound {estimates.mean():.2f}, log likelihood there {likelihood.estimate(key, phi):.2f}, highest {exact:.2f}")
print(f"variance of the level {found['level']:.0f}, of the flow {found['flow']:.0f}")

# %% [markdown]
# ## A switching model
#
# Now the two stories are put together. The level walks, and in some years it *jumps*: a hidden coin decides. A jump has
# an sd of 2.5, other steps 0.2. States are a coin and a number; the path of levels given the coins is Gaussian, but
# there are $2^{100}$ paths of coins. No exact algorithm is left, and vipl says so if one is asked for.


# %%
@vipl.gen
def jumping(num_years):
    def year(level, is_first):
        jump = sample("jump", dist.Bernoulli(0.03))
        sd = jnp.where(is_first, 10.0, jnp.where(jump, 2.5, 0.2))
        level = sample("level", dist.Normal(level, sd))
        sample("flow", dist.Normal(level, 1.25))
        return level, None

    lax.scan(year, 0.0, jnp.arange(num_years) == 0)


try:
    marginal(jumping(100), "flow", Kalman()).assess(data)
except vipl.errors.ProgramError as refused:
    print(refused)

# %% [markdown]
# A short piece of the series can be checked: the twelve years from 1893 have 4096 paths of coins, and for each the
# flows are a Gaussian of twelve dimensions. The particle filter is unbiased, so that the mean of many estimates is that
# sum.

# %% short="NUM_CHECKS = 200"
NUM_CHECKS = 4000

# %%
piece = flow[22:34]
coins = np.stack(np.unravel_index(np.arange(2**12), [2] * 12), 1)
step_variance = np.where(coins == 1, 2.5**2, 0.2**2)
step_variance[:, 0] = 10.0**2
total = np.cumsum(step_variance, 1)
index = np.minimum(np.arange(12)[:, None], np.arange(12))
covariances = total[:, index] + 1.25**2 * np.eye(12)
_, log_det = np.linalg.slogdet(2 * np.pi * covariances)
squares = piece @ np.linalg.solve(covariances, np.broadcast_to(piece[:, None], (4096, 12, 1)))[..., 0].T
log_prior = np.sum(np.where(coins == 1, np.log(0.03), np.log(0.97)), 1)
log_exact = special.logsumexp(log_prior - 0.5 * (log_det + squares))


def estimate(key):
    return marginal(jumping(12), "flow", SMC(256)).assess({"flow": piece}, key=key).log_prob


ratios = np.exp(np.asarray(jax.jit(jax.vmap(estimate))(jax.random.split(key, NUM_CHECKS)), float) - log_exact)
error = ratios.std() / NUM_CHECKS**0.5
print(f"log evidence of twelve years, by 4096 paths: {log_exact:.3f}")
print(f"mean of estimate / exact: {ratios.mean():.4f} +- {error:.4f}")

# %% [markdown]
# The whole series: `normalize(jumping(100), data, SMC(K))` is the posterior of both paths, and `simulate` draws from
# it. Averages over draws are the smoothed level, and the probability of a jump in each year.

# %% short="NUM_PATHS, NUM_PARTICLES = 10, 32"
NUM_PATHS, NUM_PARTICLES = 200, 500


# %%
def path(key):
    return normalize(jumping(100), data, SMC(NUM_PARTICLES)).simulate(key).choices


drawn = jax.jit(lambda keys: lax.map(path, keys, batch_size=20))(jax.random.split(key, NUM_PATHS))
jumps = np.asarray(drawn["jump"], float)[:, 1:].mean(0)
low, middle, high = np.quantile(drawn["level"], [0.055, 0.5, 0.945], axis=0)

fig, (above, below) = plt.subplots(2, 1, figsize=(8, 4.2), sharex=True, height_ratios=[2, 1])
above.plot(years, flow, ".", color="0.5")
above.fill_between(years, low, high, color="C0", alpha=0.3, linewidth=0)
above.plot(years, middle, color="C0")
above.set(ylabel="10¹⁰ m³ a year", title="The switching model: the level, with an 89 % band")
below.bar(years[1:], jumps, color="C1")
below.set(xlabel="year", ylabel="probability", title="A jump in this year")
fig.tight_layout()
near = (years[1:] >= 1897) & (years[1:] <= 1901)
print(f"expected number of jumps from 1897 to 1901: {jumps[near].sum():.2f}; a year outside: {jumps[~near].mean():.3f}")

# %% [markdown]
# The level is nearly flat before and after, and drops within a year or two. Nobody told the model how many jumps there
# are, or when.
#
# The last cell asserts what was compared: the Kalman filter with the Gaussian of 100 dimensions, maximum likelihood
# with the published variances, forward-backward with the sum over all paths, and the particle filter of the switching
# model with its 4096 paths, within five standard errors.

# %%
assert abs(likelihood.estimate(key, PHI) - by_hand) < 0.02
assert abs(variances["level"] / 1469 - 1) < 0.03
assert abs(variances["flow"] / 15099 - 1) < 0.03
assert abs(evidence - special.logsumexp(paths)) < 0.002
assert abs(ratios.mean() - 1) < 5 * error
