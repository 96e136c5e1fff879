"""`vipl.fit`: optima that are known exactly, laws, and messages; `vipl.interop.flax`."""

import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

import vipl
from vipl.fit import Fit, fit

MODULE = importlib.import_module("vipl.fit._fit")
KEY = jax.random.key(37)


@vipl.expectation
def square(params, data):
    """E|x - data|² with x ~ Normal(params, 1): least at the data's mean."""
    return jnp.sum((vipl.sample("x", dist.Normal(params, 1.0)) - data) ** 2)


@vipl.expectation
def plain(params):
    """A function of the parameters alone."""
    return -jnp.sum((params - 1.3) ** 2)


def quiet(objective, params, optimizer, **options):
    """`fit` without a bar."""
    return fit(objective, params, optimizer, key=KEY, progress=False, **options)


# --- optima -------------------------------------------------------------------------------------------------


@vipl.gen
def prior():
    vipl.sample("m", dist.Normal(0.7, 2.0))


@vipl.gen
def likelihood(m, n):
    vipl.sample("x", dist.Normal(m, 1.5).expand([n]).to_event(1))


@vipl.gen
def guide(phi):
    vipl.sample("m", dist.Normal(phi["loc"], jnp.exp(phi["log_scale"])))


def bound(num_rows):
    """The ELBO of a batch, scaled to `num_rows` rows."""

    @vipl.expectation
    def elbo(phi, batch):
        q = guide(phi).simulate()
        rows = likelihood(q.choices["m"], batch["x"].shape[0]).assess({"x": batch["x"]}).log_prob
        return prior().assess(q.choices).log_prob + num_rows / batch["x"].shape[0] * rows - q.log_prob

    return elbo


@pytest.mark.parametrize("batch_size", [None, 20])
def test_finds_the_posterior_of_a_conjugate_model(batch_size):
    x = 2.1 + 1.5 * jax.random.normal(jax.random.key(5), (60,))
    precision = 1 / 2.0**2 + 60 / 1.5**2
    loc = (0.7 / 2.0**2 + jnp.sum(x) / 1.5**2) / precision
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 3000))
    start = {"loc": 0.0, "log_scale": 0.0}
    options = {"num_steps": 3000, "num_samples": 8, "batch_size": batch_size}
    found = quiet(bound(60), start, optimizer, data={"x": x}, **options)
    # The posterior's standard deviation is 0.19; Adam's last steps wander by less than a tenth of it.
    assert abs(found.params["loc"] - loc) < 0.015
    assert abs(found.params["log_scale"] + 0.5 * jnp.log(precision)) < 0.05
    assert int(found.stopped) == 3000


def ppca(rows, dim, latent):
    """A linear decoder and a linear encoder, and their bound per datum."""

    @vipl.gen
    def model(params):
        z = vipl.sample("z", dist.Normal(jnp.zeros(latent), 1.0).to_event(1))
        mean = params["w"] @ z + params["mu"]
        vipl.sample("x", dist.Normal(mean, jnp.exp(params["log_sigma"])).to_event(1))

    @vipl.gen
    def encoder(params, x):
        loc = params["a"] @ (x - params["mu"])
        vipl.sample("z", dist.Normal(loc, jnp.exp(params["log_scale"])).to_event(1))

    @vipl.expectation
    def elbo(params, data):
        def datum(x):
            q = encoder(params, x).simulate()
            return model(params).assess(q.choices | {"x": x}).log_prob - q.log_prob

        return jnp.mean(jax.vmap(datum)(data))

    keys = jax.random.split(jax.random.key(3), 2)
    start = {
        "w": 0.3 * jax.random.normal(keys[0], (dim, latent)),
        "a": 0.3 * jax.random.normal(keys[1], (latent, dim)),
        "mu": jnp.zeros(dim),
        "log_sigma": 0.0,
        "log_scale": jnp.zeros(latent),
    }
    return elbo, start


def best_ppca(data, latent):
    """Greatest mean log likelihood (Tipping and Bishop 1999, eq. 9): all from the covariance's eigenvalues."""
    n, d = data.shape
    roots = np.sort(np.linalg.eigvalsh(np.cov(data.T, bias=True)))[::-1]
    noise = roots[latent:].mean()
    return -0.5 * (d * math.log(2 * math.pi) + np.log(roots[:latent]).sum() + (d - latent) * math.log(noise) + d)


def test_a_linear_autoencoder_reaches_probabilistic_pca():
    with jax.enable_x64(True):
        rng = np.random.default_rng(11)
        data = rng.normal(size=(50, 2)) @ np.array([[1.9, -0.4, 0.8, 0.1, -1.2], [0.2, 0.9, -0.3, 1.1, 0.5]])
        data = data + rng.normal(size=(50, 5)) * 0.6 + np.array([0.3, -1.7, 0.0, 2.2, 0.9])
        best = best_ppca(data, 2)
        elbo, start = ppca(50, 5, 2)
        optimizer = optax.adam(optax.cosine_decay_schedule(0.03, 4000))
        found = quiet(elbo, start, optimizer, data=data, num_steps=4000, num_samples=4)
        evaluate = jax.jit(jax.vmap(lambda key: elbo.estimate(key, found.params, data)))
        values = evaluate(jax.random.split(jax.random.key(8), 4000))
        mean, se = float(jnp.mean(values)), float(jnp.std(values)) / math.sqrt(4000)
        assert values.dtype == jnp.float64
        # At the optimum the encoder is the posterior and the bound has no variance, so that se is small as well.
        assert se < 2e-4
        assert best - 5e-3 < mean < best + 5 * se
        w, noise = np.asarray(found.params["w"]), np.exp(2 * float(found.params["log_sigma"]))
        covariance = w @ w.T + noise * np.eye(5)
        centred = data - np.asarray(found.params["mu"])
        log_likelihood = -0.5 * (
            5 * math.log(2 * math.pi)
            + np.linalg.slogdet(covariance)[1]
            + np.einsum("ni,ij,nj->n", centred, np.linalg.inv(covariance), centred).mean()
        )
        assert best - 5e-3 < log_likelihood <= best + 1e-12
        assert mean <= log_likelihood + 5 * se


def test_minimizes():
    @vipl.expectation
    def distance(params, data):
        return jnp.sum((params - data["x"]) ** 2)

    data = {"x": jnp.array([0.37, -1.3, 2.0])}
    found = quiet(distance, jnp.zeros(3), optax.sgd(0.25), data=data, num_steps=40, maximize=False)
    np.testing.assert_allclose(found.params, data["x"], rtol=1e-6)


# --- laws ---------------------------------------------------------------------------------------------------


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("chunks", [1, 7, 1000])
def test_steps_do_not_depend_on_how_many_run_together(chunks, monkeypatch, capsys):
    options = {"data": jnp.arange(11.0), "num_steps": 53, "batch_size": 3}
    here = quiet(square, 0.37, optax.adam(0.1), **options)
    monkeypatch.setattr(MODULE, "_CHUNKS", chunks)
    there = fit(square, 0.37, optax.adam(0.1), key=KEY, progress=True, **options)
    same(here, there)
    assert "53/53" in capsys.readouterr().err


def test_the_key_decides():
    options = {"data": jnp.arange(11.0), "num_steps": 5, "progress": False}
    values = [fit(square, 0.37, optax.adam(0.1), key=jax.random.key(k), **options).values for k in (1, 1, 2)]
    np.testing.assert_array_equal(values[0], values[1])
    assert np.all(values[0] != values[2])


def test_a_bar_shows_the_latest_mean(capsys):
    fit(plain, 0.8, optax.sgd(0.0), key=KEY, num_steps=3, progress=True)
    text = capsys.readouterr().err
    assert "plain" in text
    assert "3/3" in text
    assert "-0.2500" in text


def test_values_are_estimates_before_each_step():
    found = quiet(plain, 0.0, optax.sgd(0.25), num_steps=3)
    # m - 1.3 halves at each step.
    np.testing.assert_allclose(found.values, [-(1.3**2), -(0.65**2), -(0.325**2)], rtol=1e-6)
    assert isinstance(found, Fit)
    assert len(jax.tree.leaves(found)) == 3


def test_an_epoch_is_a_permutation_and_drops_the_remainder():
    @vipl.expectation
    def rows(params, batch):
        return 0.0 * params + jnp.sum(2.0 ** batch["row"]) + 0.0 * jnp.sum(batch["other"])

    data = {"row": jnp.arange(7), "other": jnp.zeros((7, 2))}
    values = np.asarray(quiet(rows, 0.0, optax.sgd(0.1), data=data, num_steps=12, batch_size=2).values).astype(int)
    bits = np.array([[v >> i & 1 for i in range(7)] for v in values])
    assert np.all(bits.sum(1) == 2)
    epochs = bits.reshape(4, 3, 7).sum(1)
    assert np.all(epochs.sum(1) == 6)
    assert epochs.max() == 1
    assert len({tuple(v) for v in values.reshape(4, 3)}) == 4


def test_auxiliary_output_is_dropped_and_the_optimizer_sees_the_loss():
    @vipl.expectation(has_aux=True)
    def objective(params):
        return -((params - 1.3) ** 2), {"twice": 2 * params}

    optimizer = optax.chain(optax.sgd(0.25), optax.contrib.reduce_on_plateau(patience=1))
    assert abs(quiet(objective, 0.0, optimizer, num_steps=30).params - 1.3) < 1e-3


# --- what is not finite -------------------------------------------------------------------------------------


def test_stops_before_a_value_that_is_not_finite():
    @vipl.expectation
    def log(params):
        return -jnp.log(params["m"])

    text = r"stopped at step 4 of 10 of log: the objective's value is not finite \(the estimate there is nan\)"
    with pytest.warns(RuntimeWarning, match=text):
        found = quiet(log, {"m": 1.0}, optax.sgd(0.2), num_steps=10)
    m, path = 1.0, []
    while m > 0:
        path.append(m)
        m -= 0.2 / m
    assert len(path) == 4
    np.testing.assert_allclose(found.params["m"], m, rtol=1e-5)
    assert int(found.stopped) == 4
    np.testing.assert_allclose(found.values[:4], -np.log(path), rtol=1e-4, atol=1e-6)
    assert np.all(np.isnan(found.values[4:]))


def test_stops_before_a_gradient_that_is_not_finite():
    @vipl.expectation
    def root(params):
        return jnp.sqrt(params)

    text = r"step 0 of 4 of root: the gradient is not finite \(the estimate there is 0.0\)"
    with pytest.warns(RuntimeWarning, match=text):
        found = quiet(root, 0.0, optax.sgd(0.1), num_steps=4)
    assert found.params == 0.0
    np.testing.assert_array_equal(found.values, [0.0, np.nan, np.nan, np.nan])


def test_stops_before_an_update_that_is_not_finite():
    with pytest.warns(RuntimeWarning, match=r"step 0 of 4 of plain: the optimizer's update is not finite"):
        found = quiet(plain, -1e10, optax.sgd(1e300), num_steps=4)
    assert found.params == -1e10


# --- messages -----------------------------------------------------------------------------------------------

WRONG = {
    "objective": (
        {"objective": lambda params: params},
        "the objective is not an expectation.\n  at:        vipl.fit\n  got:       function\n"
        "  expected:  what vipl.expectation returns\n  mend:      decorate the function with @vipl.expectation",
    ),
    "optimizer": ({"optimizer": 0.1}, "the optimizer is not an optax optimizer."),
    "num_steps": ({"num_steps": 0}, "num_steps is not a positive integer.\n  at:        vipl.fit\n  got:       0\n"),
    "integers": (
        {"params": {"m": jnp.int16(3)}},
        "the parameters are not float arrays.\n  at:        vipl.fit\n  got:       int16[] at params['m']\n",
    ),
    "nothing": (
        {"params": {}},
        "the parameters are not float arrays.\n  at:        vipl.fit\n  got:       no arrays\n",
    ),
    "batch": (
        {"data": jnp.zeros((5, 2), "float32"), "batch_size": 6},
        "the batch size does not fit the data.\n  at:        vipl.fit\n"
        "  got:       batch_size=6, and float32[5,2] at data\n  expected:  an integer from 1 to 5\n",
    ),
    "rows": (
        {"data": {"x": jnp.zeros(5, "float32"), "y": jnp.zeros((4, 2), "float32")}, "batch_size": 2},
        "the data's arrays do not share a leading axis, so that they have no batches.\n  at:        vipl.fit\n"
        "  got:       float32[5] at data['x'], float32[4,2] at data['y']\n",
    ),
    "scalar": ({"data": jnp.float32(3.0), "batch_size": 2}, "got:       float32[] at data\n"),
    "no data": ({"batch_size": 2}, "got:       no data\n"),
}


@pytest.mark.parametrize("case", WRONG)
def test_messages(case):
    changed, text = WRONG[case]
    arguments = {"objective": plain, "params": 0.0, "optimizer": optax.sgd(0.1), "num_steps": 3} | changed
    with pytest.raises(vipl.ProgramError) as error:
        fit(**arguments, key=KEY, progress=False)
    assert text in str(error.value)
    assert str(error.value).count("\n  ") == 4


# --- flax ---------------------------------------------------------------------------------------------------


def test_a_flax_module_is_fitted():
    nnx = pytest.importorskip("flax.nnx")
    from vipl.interop.flax import functional

    module = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
    params, apply = functional(module)
    x = jax.random.normal(jax.random.key(1), (40, 3))
    np.testing.assert_array_equal(apply(params)(x), module(x))
    y = x @ jnp.array([0.3, -1.2, 2.1]) + 0.7

    @vipl.gen
    def model(params, x):
        vipl.sample("y", dist.Normal(apply(params)(x)[0], 1.0))

    @vipl.expectation
    def log_likelihood(params, data):
        return jnp.mean(jax.vmap(lambda x, y: model(params, x).assess({"y": y}).log_prob)(data["x"], data["y"]))

    options = {"data": {"x": x, "y": y}, "num_steps": 500, "batch_size": 10}
    found = quiet(log_likelihood, params, optax.sgd(0.3), **options)
    np.testing.assert_allclose(found.params["kernel"][:, 0], [0.3, -1.2, 2.1], atol=1e-4)
    np.testing.assert_allclose(found.params["bias"], [0.7], atol=1e-4)


def test_a_flax_module_with_other_state_is_refused():
    nnx = pytest.importorskip("flax.nnx")
    from vipl.interop.flax import functional

    with pytest.raises(vipl.ProgramError) as error:
        functional(nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
    assert str(error.value) == (
        "a module has state that is not parameters, which a program would lose.\n"
        "  at:        vipl.interop.flax.functional of BatchNorm\n"
        "  got:       BatchStat at mean, BatchStat at var\n"
        "  expected:  nnx.Param only\n"
        "  mend:      leave out Dropout and BatchNorm (LayerNorm has no state), and write noise as sites of the program"
    )
    with pytest.raises(vipl.ProgramError, match=r"got:       RngCount at rngs.count, RngKey at rngs.key"):
        functional(nnx.Dropout(0.5, rngs=nnx.Rngs(0)))
    with pytest.raises(vipl.ProgramError, match=r"not a Flax NNX module.*\n.*\n  got:       Linear itself"):
        functional(nnx.Linear)
