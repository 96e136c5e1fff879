# %% [markdown]
# # Choose your estimators
#
# A gradient estimator is chosen for each random choice of a program. All but three of vipl's are unbiased, so the
# choice is between two prices: noise, and time. The first half of this notebook measures both on one program, whose
# exact gradient is known, and draws them.
#
# The second half is about gradients that are *wrong*, and say nothing. We run a published system where it is wrong, and
# vipl where vipl is wrong, and see how to notice in ten lines, also when no exact answer is known.

# %%
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax import lax
from numpyro.contrib.control_flow import cond as numpyro_cond
from numpyro.infer import Trace_ELBO, TraceGraph_ELBO

import vipl
from vipl import (
    ARM,
    CoupledAlternative,
    DisARM,
    Enumerate,
    GumbelSoftmax,
    LeaveOneOut,
    MeasureValued,
    ReinMax,
    Relax,
    Score,
    StraightThrough,
    objectives,
    sample,
)
from vipl.testing import assert_unbiased

key = jax.random.key(0)

# %% [markdown]
# ## One program: which machines are on?
#
# A workshop has eight machines and one electricity meter. The power of each machine is known, each is on with
# probability 0.3, and the meter is sometimes far off, so that its error has a heavy tail. It reads 5.0. Which
# machines are on? The guide has a probability for each.
#
# The objective is the evidence lower bound, written as one program: the expected log joint of the guide's draw, and the
# guide's entropy, in closed form.

# %%
POWER = jnp.array([0.7, 1.1, 1.6, 2.3, 0.4, 0.9, 1.3, 1.9, 1.2, 0.6, 2.1, 1.4])
READING = 5.0


def log_joint(on):
    log_prior = jnp.sum(on * jnp.log(0.3) + (1 - on) * jnp.log(0.7))
    return log_prior + dist.StudentT(3.0, POWER[: on.size] @ on, 0.3).log_prob(READING)


def entropy(phi):
    p = jax.nn.sigmoid(phi)
    return -jnp.sum(p * jax.nn.log_sigmoid(phi) + (1 - p) * jax.nn.log_sigmoid(-phi))


def bound_with(estimator):
    def bound(phi):
        on = sample("on", dist.Bernoulli(logits=phi).to_event(1), estimator)
        return log_joint(on.astype("float32")) + entropy(phi)

    return vipl.expectation(bound)


PHI = jnp.linspace(-1.0, 1.0, 8)

# %% [markdown]
# The exact bound is a sum over $2^8$ combinations, in plain JAX; its gradient is `jax.grad`.


# %%
def combinations(n):
    return jnp.array(np.stack(np.unravel_index(np.arange(2**n), [2] * n), 1), "float32")


@jax.jit
def exact_bound(phi):
    on = combinations(phi.size)
    log_q = jnp.sum(on * jax.nn.log_sigmoid(phi) + (1 - on) * jax.nn.log_sigmoid(-phi), 1)
    return jnp.exp(log_q) @ jax.vmap(log_joint)(on) + entropy(phi)


exact = jax.grad(exact_bound)(PHI)
print("exact bound", exact_bound(PHI).round(4), " gradient", np.asarray(exact).round(3))

# %% [markdown]
# `measure` takes an estimator and the number of samples that it averages. It returns three numbers for one gradient:
# the distance of its mean from the exact one, its standard deviation (both over all eight derivatives together), and
# its time, where 100 are made at once, the shortest of many repeats.

# %% short="NUM_GRADIENTS, REPEATS = 200, 2"
NUM_GRADIENTS, REPEATS = 5000, 30


# %%
def measure(estimator, num_samples, phi=PHI, exact=exact):
    bound = bound_with(estimator)

    def gradient(key):
        return bound.value_and_grad(key, phi, num_samples=num_samples)[1]

    @jax.jit
    def gradients(keys):
        return lax.map(gradient, keys, batch_size=100)

    keys = jax.random.split(key, NUM_GRADIENTS)
    drawn = gradients(keys)
    seconds = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        jax.block_until_ready(gradients(keys))
        seconds.append(time.perf_counter() - begun)
    off = float(jnp.linalg.norm(drawn.mean(0) - exact))
    sd = float(jnp.sqrt(jnp.sum(drawn.var(0))))
    return off, sd, min(seconds) / NUM_GRADIENTS


# %% [markdown]
# `LeaveOneOut` takes the mean of the other samples as its baseline, so that it wants two. `Relax` gets the relaxed
# program as its control variate. The last three are the biased ones, and their name has to be written at the site.

# %% short="estimators = {name: estimators[name] for name in ('StraightThrough',)}"
estimators = {
    "Enumerate": (Enumerate(), 1),
    "MeasureValued": (MeasureValued(), 1),
    "DisARM": (DisARM(), 1),
    "ARM": (ARM(), 1),
    "CoupledAlternative": (CoupledAlternative(), 1),
    "Relax": (Relax(lambda z: log_joint(jax.nn.sigmoid(2.0 * z))), 1),
    "Score, leave one out": (Score(LeaveOneOut()), 2),
    "Score": (Score(), 1),
    "StraightThrough": (StraightThrough(), 1),
    "ReinMax": (ReinMax(), 1),
    "GumbelSoftmax": (GumbelSoftmax(0.5), 1),
}

# %%
found = {}
print(f"{'estimator':<22}{'mean is off by':>15}{'standard error':>16}{'sd':>8}{'microseconds':>14}")
for name, (estimator, num_samples) in estimators.items():
    off, sd, seconds = found[name] = measure(estimator, num_samples)
    error = sd / NUM_GRADIENTS**0.5
    print(f"{name:<22}{off:15.3f}{error:16.3f}{sd:8.2f}{1e6 * seconds:14.1f}")

# %% [markdown]
# **Read the two columns beside each other.** Where the mean is off by about its standard error, there is no bias to
# be seen. `StraightThrough` is off by many, and `ReinMax`, which has a bias of higher order, by fewer. The variance
# per second is what one pays for: half the noise at four times the time is no gain. In the picture, points on one
# grey line have the same variance times time; lower and further left is better. (A circle without noise is drawn at
# the lower edge.)

# %%
fig, ax = plt.subplots(figsize=(7.4, 4.2))
for name, (_, sd, seconds) in found.items():
    biased = isinstance(estimators[name][0], vipl.Biased)
    floor = max(sd, 0.7)
    ax.loglog(1e6 * seconds, floor, "x" if biased else "o", color="C3" if biased else "C0")
    label = name + (", no noise" if sd < 1e-3 else "")
    place = {"xytext": (-5, -9), "ha": "right"} if name in ("StraightThrough", "DisARM") else {"xytext": (5, 3)}
    ax.annotate(label, (1e6 * seconds, floor), textcoords="offset points", fontsize=8, **place)
low, high = ax.get_xlim()
times = np.array([low / 2, high * 2])
for product in 4.0 ** np.arange(2, 9):
    ax.plot(times, np.sqrt(product / times), color="0.85", linewidth=0.8, zorder=0)
ax.set(xlim=(low / 2, high * 2), ylim=(0.6, 40), xlabel="microseconds for one gradient", ylabel="sd of one gradient")
ax.set_title("Unbiased (circles) and biased (crosses) estimators of one gradient")
fig.tight_layout()

# %% [markdown]
# ### How it changes with the size
#
# `Enumerate` has no noise and $2^n$ runs; `MeasureValued` runs once more for each machine; `Score` runs once, whatever
# $n$ is. With eight machines summing is cheap. The picture says from where on it is not.

# %% short="SIZES, chosen = (4,), {'MeasureValued': chosen['MeasureValued']}"
SIZES, NUM_GRADIENTS, REPEATS = (4, 8, 12), 1000, 30
chosen = {
    "Enumerate": (Enumerate(), 1),
    "MeasureValued": (MeasureValued(), 1),
    "Score, leave one out": (Score(LeaveOneOut()), 2),
}

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.2))
for name, (estimator, num_samples) in chosen.items():
    rows = []
    for size in SIZES:
        phi = jnp.linspace(-1.0, 1.0, size)
        rows.append(measure(estimator, num_samples, phi, jax.grad(exact_bound)(phi)))
    left.semilogy(SIZES, [1e6 * seconds for _, _, seconds in rows], "o-", markersize=4, label=name)
    right.plot(SIZES, [sd for _, sd, _ in rows], "o-", markersize=4, label=name)
left.set(xlabel="machines", ylabel="microseconds", title="Time of one gradient", xticks=SIZES)
right.set(xlabel="machines", ylabel="sd", title="Noise of one gradient", xticks=SIZES)
right.legend(frameon=False, fontsize=8)
fig.tight_layout()

# %% [markdown]
# That $2^n$ is for a program in which all machines meet in one sum. Where the objective is a sum *over* lanes, vipl
# sums each lane on its own: notebook 5 enumerates 272 choices.
#
# ### What it means for a fit
#
# The same optimizer and the same number of steps, and the exact bound after each. The dashed line is the best that a
# guide of independent machines can do: the exact bound, maximized.

# %% short="NUM_STEPS, MISSED = 1500, 0.03"
NUM_STEPS, MISSED = 3000, 0.03


# %%
def bounds_along(gradient):
    """Exact bounds along a fit by `gradient(key, phi)`, which is maximized."""
    optimizer = optax.adam(optax.cosine_decay_schedule(0.03, NUM_STEPS))

    def step(carry, key):
        phi, state = carry
        updates, state = optimizer.update(-gradient(key, phi), state)
        phi = optax.apply_updates(phi, updates)
        return (phi, state), exact_bound(phi)

    start = (PHI, optimizer.init(PHI))
    return jax.jit(lambda keys: lax.scan(step, start, keys)[1])(jax.random.split(key, NUM_STEPS))


def by(estimator, num_samples):
    return lambda key, phi: bound_with(estimator).value_and_grad(key, phi, num_samples=num_samples)[1]


best = bounds_along(lambda key, phi: jax.grad(exact_bound)(phi))[-1]
fits = {
    "MeasureValued": bounds_along(by(MeasureValued(), 4)),
    "Score, leave one out": bounds_along(by(Score(LeaveOneOut()), 4)),
    "StraightThrough": bounds_along(by(StraightThrough(), 4)),
}
fig, ax = plt.subplots(figsize=(7, 3.2))
for (name, values), color in zip(fits.items(), ("C0", "C1", "C3"), strict=True):
    ax.plot(values, color=color, linewidth=1, label=f"{name}: {values[-1]:.3f}")
ax.axhline(best, color="k", linestyle="--", linewidth=1, label=f"exact gradient: {best:.3f}")
ax.set(
    xlabel="step",
    ylabel="nats",
    title="The exact bound along fits, 4 samples a step",
    ylim=(float(best) - 0.7, float(best) + 0.05),
)
ax.legend(frameon=False, fontsize=9)
fig.tight_layout()

# %% [markdown]
# More noise means more steps. A bias means another place, and no number of steps helps.
#
# ## Where published systems are silently wrong
#
# A wrong gradient does not crash. The loss falls, since it has some of the gradient, and the result is the wrong one.
# `compare` prints the mean of many gradients beside the exact one, in standard errors.

# %% short="NUM_DRAWS = 500"
NUM_DRAWS = 50_000


# %%
def compare(exact, candidates):
    """Prints means of (value, gradient), one of the derivatives, and how many standard errors it is off."""
    for name, draw in candidates.items():
        value, gradient = jax.jit(jax.vmap(draw))(jax.random.split(key, NUM_DRAWS))
        mean, error = gradient.mean(), gradient.std() / NUM_DRAWS**0.5
        off = abs(mean - exact[1]) / max(float(error), 1e-6)
        print(f"{name:<26} value {value.mean():7.3f}   derivative {mean:7.3f} +- {error:.3f}   off by {off:6.1f}")
    print(f"{'exact':<26} value {exact[0]:7.3f}   derivative {exact[1]:7.3f}")


# %% [markdown]
# ### A discrete choice, differentiated through
#
# The machines in NumPyro. `Trace_ELBO`, the objective of its tutorials, differentiates the loss at the drawn values.
# Its documentation says that it supports reparametrized choices only; in a program with another one it runs, without
# a warning. `TraceGraph_ELBO` adds the score function.


# %%
def numpyro_model():
    on = numpyro.sample("on", dist.Bernoulli(0.3).expand([8]).to_event(1))
    numpyro.sample("meter", dist.StudentT(3.0, POWER[:8] @ on, 0.3), obs=READING)


def numpyro_guide():
    phi = numpyro.param("phi", PHI)
    numpyro.sample("on", dist.Bernoulli(logits=phi).to_event(1))


def by_numpyro(loss, model, guide, params, pick):
    """(bound, one derivative) of one draw, of NumPyro's negative bound."""

    def draw(key):
        value, gradient = jax.value_and_grad(lambda params: -loss.loss(key, params, model, guide))(params)
        return value, pick(gradient)

    return draw


def machines(loss):
    return by_numpyro(loss, numpyro_model, numpyro_guide, {"phi": PHI}, lambda g: g["phi"][3])


def by_vipl(estimator, num_samples):
    def draw(key):
        value, gradient = bound_with(estimator).value_and_grad(key, PHI, num_samples=num_samples)
        return value, gradient[3]

    return draw


candidates = {
    "NumPyro, Trace_ELBO": machines(Trace_ELBO()),
    "NumPyro, TraceGraph_ELBO": machines(TraceGraph_ELBO()),
    "vipl, Score": by_vipl(Score(LeaveOneOut()), 2),
    "vipl, StraightThrough": by_vipl(StraightThrough(), 1),
}
compare((exact_bound(PHI), exact[3]), candidates)

# %% [markdown]
# At the values drawn, only the guide's own log density has a derivative, and the mean of that is zero. So the first
# line is zero up to its noise: the guide learns nothing, or rather, it wanders. vipl puts `Score()` where nothing is
# said, and a site of a distribution that has no pathwise derivative refuses `Reparam()`.
#
# ### A choice inside control flow
#
# It rains or not, and the sprinkler runs more often when it does not. The sprinkler is a choice in the branches of a
# `cond`, in the model and in the guide. NumPyro has a `cond` of its own for this, marked as experimental.

# %%
WET = 1.4
TWO = {"rain": 0.3, "sprinkler": -0.2}


def numpyro_garden():
    rain = numpyro.sample("rain", dist.Bernoulli(0.4))

    def rare(_):
        return numpyro.sample("sprinkler", dist.Bernoulli(0.3))

    def often(_):
        return numpyro.sample("sprinkler", dist.Bernoulli(0.8))

    sprinkler = numpyro_cond(rain > 0, rare, often, None)
    numpyro.sample("wet", dist.Normal(rain + 2.0 * sprinkler, 1.0), obs=WET)


def numpyro_garden_guide():
    logit, other = numpyro.param("rain_logit", TWO["rain"]), numpyro.param("sprinkler_logit", TWO["sprinkler"])
    rain = numpyro.sample("rain", dist.Bernoulli(logits=logit))

    def if_rain(_):
        return numpyro.sample("sprinkler", dist.Bernoulli(logits=other))

    def if_dry(_):
        return numpyro.sample("sprinkler", dist.Bernoulli(logits=-other))

    numpyro_cond(rain > 0, if_rain, if_dry, None)


@vipl.gen
def garden():
    rain = sample("rain", dist.Bernoulli(0.4))

    def rare():
        return sample("sprinkler", dist.Bernoulli(0.3))

    def often():
        return sample("sprinkler", dist.Bernoulli(0.8))

    sprinkler = lax.cond(rain > 0, rare, often)
    sample("wet", dist.Normal(rain + 2.0 * sprinkler, 1.0))


@vipl.gen
def garden_guide(phi):
    rain = sample("rain", dist.Bernoulli(logits=phi["rain"]))

    def if_rain():
        return sample("sprinkler", dist.Bernoulli(logits=phi["sprinkler"]))

    def if_dry():
        return sample("sprinkler", dist.Bernoulli(logits=-phi["sprinkler"]))

    lax.cond(rain > 0, if_rain, if_dry)


garden_bound = vipl.expectation(lambda phi: objectives.elbo(garden(), garden_guide(phi), {"wet": WET}))


def exact_garden(phi):
    """The sum over four cases, by hand."""
    total = 0.0
    for rain, chance in ((0.0, 0.8), (1.0, 0.3)):
        logit = phi["sprinkler"] if rain else -phi["sprinkler"]
        for sprinkler in (0.0, 1.0):
            log_q = dist.Bernoulli(logits=phi["rain"]).log_prob(rain)
            log_q += dist.Bernoulli(logits=logit).log_prob(sprinkler)
            log_p = dist.Bernoulli(0.4).log_prob(rain) + dist.Bernoulli(chance).log_prob(sprinkler)
            log_p += dist.Normal(rain + 2.0 * sprinkler, 1.0).log_prob(WET)
            total += jnp.exp(log_q) * (log_p - log_q)
    return total


def gardens(loss):
    params = {"rain_logit": TWO["rain"], "sprinkler_logit": TWO["sprinkler"]}
    return by_numpyro(loss, numpyro_garden, numpyro_garden_guide, params, lambda g: g["sprinkler_logit"])


def garden_by_vipl(key):
    value, gradient = garden_bound.value_and_grad(key, TWO)
    return value, gradient["sprinkler"]


value, gradient = jax.value_and_grad(exact_garden)(TWO)
candidates = {
    "NumPyro, Trace_ELBO": gardens(Trace_ELBO()),
    "NumPyro, TraceGraph_ELBO": gardens(TraceGraph_ELBO()),
    "vipl, Score": garden_by_vipl,
}
compare((value, gradient["sprinkler"]), candidates)

# %% [markdown]
# Here even the *value* differs (NumPyro 0.22). The reason can be seen in one trace: the model is asked about the
# guide's choices, and in the branch it draws a sprinkler of its own for what comes after.

# %%
guide_trace = numpyro.handlers.trace(numpyro.handlers.seed(numpyro_garden_guide, 3)).get_trace()
replayed = numpyro.handlers.replay(numpyro.handlers.seed(numpyro_garden, 1), guide_trace)
model_trace = numpyro.handlers.trace(replayed).get_trace()
rain, sprinkler = (int(guide_trace[name]["value"]) for name in ("rain", "sprinkler"))
print(f"the guide drew rain {rain}, sprinkler {sprinkler}: so the model's mean of wet is {rain + 2 * sprinkler}")
print(f"the model used {float(model_trace['wet']['fn'].loc):.0f}")

# %% [markdown]
# ### A comparison
#
# The third case is wrong in every system that differentiates draws, **and in vipl by default, too**. A thermostat heats
# when the temperature is below a threshold. The temperature is Normal, and reparametrized. Its derivative passes
# through everything except the comparison, whose derivative is zero almost everywhere.


# %%
def heating(estimator):
    def cost(mean):
        temperature = sample("temperature", dist.Normal(mean, 1.0), estimator)
        return jnp.where(temperature < 18.0, 2.0, 0.0) + 0.1 * temperature

    return vipl.expectation(cost)


def exact_heating(mean):
    return 2.0 * jax.scipy.stats.norm.cdf(18.0 - mean) + 0.1 * mean


AT = 18.6
estimators = {
    "jax.grad of the draw": lambda key: jax.value_and_grad(
        lambda mean: (lambda t: jnp.where(t < 18.0, 2.0, 0.0) + 0.1 * t)(mean + jax.random.normal(key))
    )(AT),
    "vipl, Reparam": lambda key: heating(vipl.Reparam()).value_and_grad(key, AT),
    "vipl, Score": lambda key: heating(Score()).value_and_grad(key, AT),
    "vipl, MeasureValued": lambda key: heating(MeasureValued()).value_and_grad(key, AT),
}
compare(jax.value_and_grad(exact_heating)(AT), estimators)

# %% [markdown]
# The pathwise derivative is 0.1 in *every* draw: no noise, a wrong sign, and nothing that looks suspicious. vipl does
# not detect this (it is in its list of limits). The rule: **a value that decides a comparison, a branch or a rounding
# gets `MeasureValued()` or `Score()`.**
#
# ## How to see it
#
# **With an exact answer.** Make the program small enough to sum over, and use `assert_unbiased`. It draws as often as
# is needed to see a bias of `resolution`, and it fails if it could not have seen one: a test that is merely too noisy
# does not pass.

# %%
RESOLUTION = 0.1


# %%
def is_unbiased(draw, exact):
    try:
        assert_unbiased(draw, exact, key=key, resolution=RESOLUTION)
    except AssertionError as error:
        if "z = " not in str(error):
            raise  # it could not have seen a bias
        return False
    return True


for name in ("vipl, Reparam", "vipl, Score", "vipl, MeasureValued"):
    print(name, is_unbiased(lambda key, draw=estimators[name]: draw(key)[1], jax.grad(exact_heating)(AT)))

# %% [markdown]
# **Without an exact answer.** `Score` is unbiased wherever the support is fixed. So draw the gradient twice, by `Score`
# and by what you want to use: the difference has mean zero, whatever the exact gradient is. This works on your own
# program as it stands.


# %%
def difference(first, second):
    """Draws of the difference of two gradients, with independent keys."""

    def draw(key):
        one, other = jax.random.split(key)
        return first(one)[1] - second(other)[1]

    return draw


verdicts = {}
for name, suspect in {
    "comparison, Reparam": (estimators["vipl, Score"], estimators["vipl, Reparam"]),
    "comparison, MeasureValued": (estimators["vipl, Score"], estimators["vipl, MeasureValued"]),
    "machines, StraightThrough": (by_vipl(MeasureValued(), 1), by_vipl(StraightThrough(), 1)),
    "machines, DisARM": (by_vipl(MeasureValued(), 1), by_vipl(DisARM(), 1)),
}.items():
    verdicts[name] = is_unbiased(difference(*suspect), 0.0)
    print(f"{name:<28} {'unbiased' if verdicts[name] else 'BIASED'}")

# %% [markdown]
# ## Rules
#
# 1. Reparametrized, and smooth: `Reparam()`, the default.
# 2. Few discrete values, or lanes that only add up: `Enumerate()`.
# 3. Discrete values that meet, or a value that decides a branch: `MeasureValued()`; `DisARM()` for Bernoulli vectors.
# 4. Anything else: `Score(LeaveOneOut())`, with at least two samples.
# 5. **Measure**: `measure` above is twenty lines, and the order of the table is that of this program, not of yours.
#
# The last cell asserts that an unbiased estimator reached the optimum of the exact bound, that the straight-through
# estimator did not, and that the check told them apart without an exact answer.

# %%
print({name: f"{best - values[-1]:.3f} nats below the best" for name, values in fits.items()})
assert best - fits["MeasureValued"][-1] < MISSED
assert best - fits["StraightThrough"][-1] > MISSED
assert verdicts == {
    "comparison, Reparam": False,
    "comparison, MeasureValued": True,
    "machines, StraightThrough": False,
    "machines, DisARM": True,
}
