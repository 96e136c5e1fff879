# %% [markdown]
# # From NumPyro
#
# You write models in NumPyro, and fit them by SVI with an autoguide or by NUTS. This notebook writes two
# hierarchical models in both systems, side by side, fits them by all three, and compares means and standard
# deviations. NUTS is the reference.
#
# The distributions are the same objects: vipl uses `numpyro.distributions`. The optimizers are optax's in both.
#
# ## Eight schools
#
# Eight schools tried a training programme. Each reported an effect and its standard error.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

import vipl

key = jax.random.key(0)
errors = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
effects = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])

# %% [markdown]
# In NumPyro:


# %%
def numpyro_schools(errors, y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfNormal(5.0))
    with numpyro.plate("schools", 8):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        theta = numpyro.deterministic("theta", mu + tau * z)
        numpyro.sample("y", dist.Normal(theta, errors), obs=y)


# %% [markdown]
# In vipl:


# %%
@vipl.gen
def vipl_schools(errors):
    mu = vipl.sample("mu", dist.Normal(0.0, 5.0))
    tau = vipl.sample("tau", dist.HalfNormal(5.0))

    def school(error):
        z = vipl.sample("z", dist.Normal(0.0, 1.0))
        theta = vipl.deterministic("theta", mu + tau * z)
        vipl.sample("y", dist.Normal(theta, error))

    jax.vmap(school)(errors)


# %% [markdown]
# Three things differ.
#
# - **A model does not know its data.** There is no `obs=`. Data are given by address where something is done with
#   the model. One program is the prior, the likelihood, and the model for predictions.
# - **A plate is a `jax.vmap`**, over rows, or with `axis_size=8` over nothing; inside of it `z` is one number.
#   Vector sites work too: `sample("z", dist.Normal(0.0, 1.0).expand([8]))`. Sites may stand in `lax.scan` and
#   `lax.cond` as these are.
# - **There are no handlers.** A program with its arguments is a value with methods: `simulate`, `assess`,
#   `generate`. A key is passed where something is drawn.
#
# | NumPyro | vipl |
# | --- | --- |
# | `numpyro.sample("x", d)` | `vipl.sample("x", d)`; an address may nest, `("layer", "w")`, and a site's source may be a program |
# | `numpyro.sample("y", d, obs=y)` | `vipl.sample("y", d)`, and `{"y": y}` given to `infer`, `assess` or `generate` |
# | `numpyro.plate("rows", n)` | `jax.vmap(row)(rows)`, `jax.vmap(row, axis_size=n)()`, or `d.expand([n])` |
# | `plate(..., subsample_size=b)`, `handlers.scale` | `vipl.scaled(source, n / b)`, with `vipl.fit(..., batch_size=b)` |
# | `d.mask(m)` | `d.mask(m)` |
# | `numpyro.deterministic`, `numpyro.factor` | `vipl.deterministic`, `vipl.factor` |
# | `contrib.control_flow.scan`, `cond` | `jax.lax.scan`, `jax.lax.cond` |
# | `handlers.seed` and `handlers.trace` | `model(x).simulate(key)`, which has `choices`, `log_prob`, `deterministics` |
# | `handlers.substitute`, `handlers.condition`, `log_density` | `model(x).assess(choices)`, `model(x).generate(some, key=key)` |
# | `AutoNormal`, `AutoMultivariateNormal` | `guides.MeanField`, `guides.FullRank` |
# | `AutoLaplaceApproximation`, `AutoDelta` | `guides.Laplace`, `guides.Delta` |
# | `AutoLowRankMultivariateNormal`, `AutoIAFNormal`, `AutoGuideList` | `guides.LowRank`, `guides.Flow`, `guides.combine` |
# | `SVI(model, guide, optimizer, Trace_ELBO())` | `vipl.infer(model(x), data, key=key)`; or `vipl.expectation` and `vipl.fit` |
# | `TraceGraph_ELBO`, `TraceEnum_ELBO` | an estimator at the site: `vipl.Score()`, `vipl.Enumerate()` |
# | `numpyro.param` | an argument of the guide, any pytree |
# | `Predictive(model, num_samples=n)` | `vipl.predict(key, model(x), n)` |
# | `Predictive(model, samples)` | `posterior.predict(key, model(x))`, or `vipl.predict(key, model(x), n, choices=samples)` |
# | `print_summary`, `az.from_numpyro` | `posterior.summary()`, `posterior.to_arviz(key)` |
# | `flax_module` | `vipl.interop.flax.functional` |
#
# ### Fits
#
# First NumPyro's. For SVI somebody has to choose the guide, the optimizer, the number of steps and that of
# particles.

# %% short="num_warmup, num_samples, num_steps = 300, 1000, 2000"
num_warmup, num_samples, num_steps = 1000, 4000, 10_000


# %% short="methods = {'NUTS': by_nuts}"
def by_nuts(model, *arguments):
    mcmc = MCMC(NUTS(model), num_warmup=num_warmup, num_samples=num_samples, progress_bar=False)
    mcmc.run(key, *arguments)
    return mcmc.get_samples()


def by_svi(model, *arguments):
    guide = AutoNormal(model)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.02, num_steps))
    svi = SVI(model, guide, optimizer, Trace_ELBO(num_particles=8))
    result = svi.run(key, num_steps, *arguments, progress_bar=False)
    return guide.sample_posterior(key, result.params, sample_shape=(4000,))


methods = {"NUTS": by_nuts, "AutoNormal": by_svi}

# %%
schools = {name: method(numpyro_schools, errors, effects) for name, method in methods.items()}

# %% [markdown]
# vipl chooses a guide (`FullRank`), takes natural gradient steps until the standard errors of all means are below
# 0.02 sd, and says how good the result is. The model has 9 lines in vipl and 7 in NumPyro. The fit has one line; by
# NUTS it has three, by SVI five.

# %%
posterior = vipl.infer(vipl_schools(errors), {"y": effects}, key=key)
posterior.summary()

# %% [markdown]
# **Look at** the column `moved` and at the last line. The draws can be used, and `improve` weights them towards the
# exact posterior. `moved` says where this matters: the mean of `tau` is 0.2 sd too small. The guide is Gaussian in
# log `tau`; the posterior has a longer tail. vipl says so without a reference. The comparison with NUTS says the
# same:


# %%
def compare(draws, addresses):
    """Differences of means from NUTS in its sds, the largest of an address, and the mean ratio of the sds."""
    print(f"{'':12}" + "".join(f"{name:>20}" for name in draws if name != "NUTS"))
    for address in addresses:
        mean, sd = draws["NUTS"][address].mean(0), draws["NUTS"][address].std(0)
        others = [x[address] for name, x in draws.items() if name != "NUTS"]
        cells = [f"{np.max(abs(x.mean(0) - mean) / sd):14.2f}{np.mean(x.std(0) / sd):6.2f}" for x in others]
        print(f"{address:12}" + "".join(cells))


schools |= {"infer": posterior.sample(key, 4000), "improve": posterior.improve(key).sample(key, 4000)}
compare(schools, ["mu", "tau", "z"])

# %% [markdown]
# ### Predictions
#
# What would a ninth school report, with standard error 10? In both systems that is another model, which shares the
# addresses `mu` and `tau`. `predict` takes from the posterior what the program has, and draws the rest.


# %%
def numpyro_new(error):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfNormal(5.0))
    z = numpyro.sample("z_new", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(mu + tau * z, error))


@vipl.gen
def vipl_new(error):
    mu = vipl.sample("mu", dist.Normal(0.0, 5.0))
    tau = vipl.sample("tau", dist.HalfNormal(5.0))
    z = vipl.sample("z_new", dist.Normal(0.0, 1.0))
    vipl.sample("y", dist.Normal(mu + tau * z, error))


shared = {address: schools["NUTS"][address] for address in ("mu", "tau")}
by_numpyro = Predictive(numpyro_new, shared)(key, 10.0)["y"]
by_vipl = posterior.predict(key, vipl_new(10.0), num_samples=4000)["y"]
print(f"NumPyro {by_numpyro.mean():.1f} +- {by_numpyro.std():.1f}, vipl {by_vipl.mean():.1f} +- {by_vipl.std():.1f}")

# %% [markdown]
# ## Varying intercepts
#
# Radon gets into houses from the ground. These data are simulated after the well-known ones from Minnesota. The
# houses are in counties, few in some and many in others. The level of a county depends on the uranium in its soil,
# and that of a house on whether it was measured upstairs or in the basement. The columns are in raw units, parts
# per million and picocuries per litre.

# %%
rng = np.random.default_rng(5)
houses = np.array([2, 2, 3, 4, 5, 6, 9, 12, 16, 24, 36, 60])
county = np.repeat(np.arange(houses.size), houses)
ppm = rng.lognormal(0.9, 0.35, houses.size).round(2)
upstairs = (rng.random(county.size) < 0.2).astype(float)
true_level = 0.2 + 0.3 * ppm + 0.5 * rng.normal(size=houses.size)
log_radon = true_level[county] - 0.65 * upstairs + 0.75 * rng.normal(size=county.size)
radon = np.exp(log_radon).round(1).clip(0.1)


def numpyro_radon(county, upstairs, ppm, y=None):
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 5.0))
    uranium = numpyro.sample("uranium", dist.Normal(0.0, 5.0))
    floor = numpyro.sample("floor", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
    with numpyro.plate("counties", ppm.size):
        level = numpyro.sample("level", dist.Normal(intercept + uranium * ppm, tau))
    with numpyro.plate("houses", county.size):
        numpyro.sample("y", dist.LogNormal(level[county] + floor * upstairs, sigma), obs=y)


@vipl.gen
def centred(county, upstairs, ppm):
    intercept = vipl.sample("intercept", dist.Normal(0.0, 5.0))
    uranium = vipl.sample("uranium", dist.Normal(0.0, 5.0))
    floor = vipl.sample("floor", dist.Normal(0.0, 5.0))
    tau = vipl.sample("tau", dist.HalfNormal(1.0))
    sigma = vipl.sample("sigma", dist.HalfNormal(2.0))
    level = vipl.sample("level", dist.Normal(intercept + uranium * ppm, tau))
    vipl.sample("y", dist.LogNormal(level[county] + floor * upstairs, sigma))


# %% [markdown]
# Is this better, or the non-centred form that the schools have? NUTS users know the rule: non-centred where groups
# have few data, centred where they have many. Here some have few and some have many. Fit both:


# %%
@vipl.gen
def non_centred(county, upstairs, ppm):
    intercept = vipl.sample("intercept", dist.Normal(0.0, 5.0))
    uranium = vipl.sample("uranium", dist.Normal(0.0, 5.0))
    floor = vipl.sample("floor", dist.Normal(0.0, 5.0))
    tau = vipl.sample("tau", dist.HalfNormal(1.0))
    sigma = vipl.sample("sigma", dist.HalfNormal(2.0))
    z = vipl.sample("z", dist.Normal(0.0, 1.0).expand([ppm.size]))
    level = vipl.deterministic("level", intercept + uranium * ppm + tau * z)
    vipl.sample("y", dist.LogNormal(level[county] + floor * upstairs, sigma))


# %% short="forms = [centred]"
forms = [non_centred, centred]

# %%
for form in forms:
    posterior = vipl.infer(form(county, upstairs, ppm), {"y": radon}, key=key)
    print(f"{form.__name__}: {posterior.improve(key).verdict()}")

# %% [markdown]
# **Look at** the two bounds. Both models have the same evidence, so that the higher bound belongs to the form whose
# posterior is closer to a Gaussian. Here it is the centred one, and k-hat agrees. We keep that, and compare it with
# NUTS.

# %%
counties = {name: method(numpyro_radon, county, upstairs, ppm, radon) for name, method in methods.items()}
counties |= {"infer": posterior.sample(key, 4000), "improve": posterior.improve(key).sample(key, 4000)}
addresses = ["intercept", "uranium", "floor", "tau", "sigma", "level"]
compare(counties, addresses)

# %% [markdown]
# **Look at** the sds of AutoNormal. Uranium is in raw units, far from zero, so that intercept and slope are
# correlated. A guide with independent coordinates then gets sds that are several times too small. (Standardized
# columns help it. `FullRank` does not need them.)
#
# The picture shows partial pooling: a county with few houses is drawn from its own mean towards the line through
# all counties. NUTS and vipl say the same about each county.

# %%
own = np.array([log_radon[county == j].mean() + 0.65 * upstairs[county == j].mean() for j in range(houses.size)])
figure, axes = plt.subplots(figsize=(7, 3.5))
for name, shift, colour in (("NUTS", -0.13, "C1"), ("infer", 0.13, "C0")):
    draws = np.asarray(counties[name]["level"])
    low, high = np.quantile(draws, [0.055, 0.945], axis=0)
    axes.vlines(np.arange(houses.size) + shift, low, high, color=colour, linewidth=2, label=f"{name}, 89%")
line = counties["infer"]["intercept"].mean() + counties["infer"]["uranium"].mean() * ppm
axes.plot(line, "_", color="grey", markersize=14, label="by uranium alone")
axes.plot(own, "kx", markersize=5, label="mean of the county's houses")
axes.set_xticks(range(houses.size), houses)
axes.set(
    xlabel="houses in the county", ylabel="log radon in the basement", title="Levels of the counties", ylim=(-2.0, 3.0)
)
axes.legend(fontsize=8, ncols=2, loc="lower left")
figure.tight_layout()

# %% [markdown]
# At last the number that this notebook is about: how far the posterior means of vipl are from those of NUTS, in
# posterior standard deviations, over all latent numbers of both models.

# %% short="tolerance = 0.3"
tolerance = 0.2


# %%
def distance(draws, addresses):
    """The largest distance of a mean from NUTS's, in sds."""
    exact = draws["NUTS"]
    return max(np.max(abs(draws["infer"][a].mean(0) - exact[a].mean(0)) / exact[a].std(0)) for a in addresses)


of_schools, of_counties = distance(schools, ["mu", "tau", "z"]), distance(counties, addresses)
print(f"schools {of_schools:.2f} sd, counties {of_counties:.2f} sd")
assert max(of_schools, of_counties) < tolerance
