"""Programs over eight devices, each compared with the same program on one; run by `tests/test_devices.py` in a process.

Prints a line of JSON: what each check was told, or null.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import traceback
from typing import Any

if __name__ == "__main__":
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), flags])

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import vipl
from vipl import sample

KEY = jax.random.key(3)
ROWS = np.random.RandomState(0).randn(16, 2)


@vipl.gen
def model(m, x):
    def row(r):
        z = sample("z", dist.Normal(m, 1.3))
        sample("y", dist.Normal(r * z, 0.7).to_event(1))

    jax.vmap(row)(x)


@vipl.gen
def guide(m, x):
    jax.vmap(lambda r: sample("z", dist.Normal(m * r.sum(), 0.9)))(x)


@vipl.expectation
def elbo(m, x):
    q = guide(m, x).simulate()
    return (model(m, x).assess(q.choices | {"y": x}).log_prob - q.log_prob) / x.shape[0]


@vipl.expectation
def flips(m, x):
    return jnp.mean(jax.vmap(lambda r: (sample("b", dist.Bernoulli(logits=m * r.sum())) * 1.5 - r[0]) ** 2)(x))


@vipl.expectation
def nested(m, x):
    inner = jax.vmap(lambda a: (sample("z", dist.Normal(m * a, 1.0)) - a) ** 2)
    return jnp.mean(jax.vmap(inner)(x))


@vipl.expectation
def chains(m, x):
    def step(carry, a):
        z = sample("z", dist.Normal(carry * 0.5 + m * a, 1.0))
        return z, (z - a) ** 2

    return jnp.mean(jax.vmap(lambda r: lax.scan(step, 0.3 * m * r[0], r)[1].sum())(x))


@vipl.expectation
def branches(m, x):
    def row(r):
        one = lambda: sample("a", dist.Normal(m, 1.0)) ** 2  # noqa: E731
        return lax.cond(r[0] > 0, one, lambda: sample("b", dist.LogNormal(m, 0.5)) * r[1])

    return jnp.mean(jax.vmap(row)(x))


@vipl.expectation
def vectors(m, x):
    return jnp.mean((sample("z", dist.Normal(m * x, 1.0).to_event(2)) - x) ** 2)


@vipl.expectation
def columns(m, x):
    return jnp.mean(jax.vmap(lambda c: sample("z", dist.Normal(m * c.sum(), 1.0)) * c, in_axes=1, out_axes=1)(x))


@vipl.expectation
def long_chains(m, x):
    """More sites than a chain may have before its values are fenced."""

    def row(r):
        z, total = 0.3 * r[0], 0.0
        for i in range(10):
            z = sample(f"z{i}", dist.Normal(0.5 * z + m * r[1], 1.0), vipl.MeasureValued())
            total += (z - r[0]) ** 2
        return total

    return jnp.mean(jax.vmap(row)(x))


OBJECTIVES = {f.fn.__name__: f for f in (elbo, nested, chains, long_chains, branches, vectors, columns)}
ESTIMATORS = {
    "score": (flips, "b", vipl.Score()),
    "enumerate": (flips, "b", vipl.Enumerate()),
    "measure_valued": (flips, "b", vipl.MeasureValued()),
    "local": (flips, "b", vipl.LocalEnumerate()),
    "disarm": (flips, "b", vipl.DisARM()),
    "coupled": (flips, "b", vipl.CoupledAlternative()),
    "nested_measure_valued": (nested, "z", vipl.MeasureValued()),
}
OBJECTIVES |= {name: f.with_estimators({address: e}) for name, (f, address, e) in ESTIMATORS.items()}

CHECKS = {}


def check(fn):
    """Registers a check."""
    CHECKS[fn.__name__] = fn
    return fn


def make_mesh(kind):
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(getattr(AxisType, kind),) * 2)


def spread(mesh, x=ROWS, spec=("data",)):
    return jax.device_put(x, NamedSharding(mesh, P(*spec)))


def equal(got, want):
    # Sums over devices are taken in another order: a few units in the last place.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-12, atol=1e-14), got, want
    )


def objective_equals_one_device(f, kind, num_samples):
    mesh = make_mesh(kind)
    run = jax.jit(lambda x: f.value_and_grad(KEY, 0.7, x, num_samples=num_samples))
    want = run(jnp.asarray(ROWS))
    with jax.set_mesh(mesh):
        equal(run(spread(mesh)), want)
    equal(run(spread(mesh)), want)  # the mesh is known from the data, too


for _name in OBJECTIVES:
    CHECKS[f"explicit_{_name}"] = functools.partial(objective_equals_one_device, OBJECTIVES[_name], "Explicit", 2)
CHECKS["explicit_one_sample"] = functools.partial(objective_equals_one_device, elbo, "Explicit", 1)
CHECKS["auto_elbo"] = functools.partial(objective_equals_one_device, elbo, "Auto", 2)


@check
def fit_takes_batches():
    optimizer, mesh = optax.adam(0.1), make_mesh("Explicit")
    options: dict[str, Any] = {"key": KEY, "num_steps": 7, "progress": False}
    for batch_size in (4, 3, None):  # 3 rows do not go over 4 devices evenly
        want = vipl.fit(elbo, 0.7, optimizer, data=jnp.asarray(ROWS), batch_size=batch_size, **options)
        equal(vipl.fit(elbo, 0.7, optimizer, data=spread(mesh), batch_size=batch_size, **options), want)
    options["num_steps"] = 3
    first = vipl.fit(elbo, 0.7, optimizer, data=spread(mesh), batch_size=4, **options)
    options["num_steps"] = 4
    rest = vipl.fit(elbo, None, optimizer, data=spread(mesh), batch_size=4, resume=first, **options)
    options["num_steps"] = 7
    want = vipl.fit(elbo, 0.7, optimizer, data=jnp.asarray(ROWS), batch_size=4, **options)
    equal(rest, want)


@check
def traces_are_spread_as_the_data():
    mesh = make_mesh("Explicit")
    with jax.set_mesh(mesh):
        want = model(0.4, jnp.asarray(ROWS)).simulate(KEY)
        got = model(0.4, spread(mesh)).simulate(KEY)
        equal(got, want)
        choices = {"z": spread(mesh, want.choices["z"]), "y": spread(mesh)}
        equal(
            model(0.4, spread(mesh)).assess(choices, key=KEY).log_prob,
            model(0.4, ROWS).assess({"z": want.choices["z"], "y": ROWS}).log_prob,
        )
        partly = model(0.4, spread(mesh)).generate({"y": spread(mesh)}, key=KEY)
        equal(partly, model(0.4, ROWS).generate({"y": ROWS}, key=KEY))


def data_parallel(program, varies, kind):
    """Values and gradients of eight shards; `varies`: each draws from a key of its own."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(getattr(AxisType, kind),))

    def key_of(i):
        return jax.random.fold_in(KEY, i) if varies else KEY

    def shard(m, x):
        value, grad = program.value_and_grad(key_of(lax.axis_index("data")), m, x)
        # JAX adds up the derivative in `m`, which is the same in all shards, by itself.
        return lax.pmean(value, "data"), grad / 8

    mapped = jax.shard_map(shard, mesh=mesh, in_specs=(P(), P("data")), out_specs=(P(), P()), check_vma=True)
    each = [program.value_and_grad(key_of(i), 0.7, jnp.asarray(ROWS[2 * i : 2 * i + 2])) for i in range(8)]
    want = jax.tree.map(lambda *xs: sum(xs) / 8, *each)
    equal(jax.jit(mapped)(0.7, spread(mesh)), want)
    equal(mapped(0.7, spread(mesh)), want)


for _name in ("elbo", "chains", "branches", "measure_valued", "enumerate"):
    CHECKS[f"shard_map_{_name}"] = functools.partial(data_parallel, OBJECTIVES[_name], True, "Auto")
CHECKS["shard_map_one_key"] = functools.partial(data_parallel, elbo, False, "Auto")
CHECKS["shard_map_explicit"] = functools.partial(data_parallel, elbo, True, "Explicit")


@check
def shard_map_of_draws_alone():
    """A key that differs makes draws differ whose parameters do not."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    def draw(key):
        return jax.jit(lambda: sample("z", dist.Normal(0.0, 1.0)) + sample("g", dist.Gamma(2.0, 1.0)))()

    def shard():
        return vipl.seed(draw)(jax.random.fold_in(KEY, lax.axis_index("data")), 0.0)[None]

    got = jax.jit(jax.shard_map(shard, mesh=mesh, in_specs=(), out_specs=P("data"), check_vma=True))()
    equal(got, jnp.stack([vipl.seed(draw)(jax.random.fold_in(KEY, i), 0.0) for i in range(8)]))


FAMILIES = {
    "gamma": lambda r: dist.Gamma(r[0], 1.0),
    "beta": lambda r: dist.Beta(r[0], 1.0),
    "poisson": lambda r: dist.Poisson(r[0]),
    "binomial": lambda r: dist.Binomial(5, jax.nn.sigmoid(r[0])),
    "truncated": lambda r: dist.TruncatedNormal(r[0], 1.0, low=0.0),
    "dirichlet": lambda r: dist.Dirichlet(r),
    "multivariate normal": lambda r: dist.MultivariateNormal(r, jnp.eye(2)),
    "lkj": lambda r: dist.LKJCholesky(3, r[0]),
}


@check
def families():
    mesh, rows = make_mesh("Explicit"), ROWS**2 + 0.1
    for make in FAMILIES.values():
        program = vipl.gen(lambda x, make=make: jax.vmap(lambda r: sample("z", make(r)))(x))
        run = jax.jit(lambda x, program=program: program(x).simulate(KEY))
        equal(run(spread(mesh, rows)), run(jnp.asarray(rows)))


@check
def what_is_closed_over_has_to_be_an_argument():
    mesh = make_mesh("Explicit")
    x = spread(mesh)

    @vipl.expectation
    def lanes(m):
        return jnp.mean(jax.vmap(lambda r: sample("z", dist.Normal(m, 1.0)) * r[0])(x))

    @vipl.expectation
    def plain(m):
        return jnp.mean(sample("z", dist.Normal(m, 1.0)) * x)

    @vipl.expectation
    def placed(m):
        return jnp.mean(jax.reshard(sample("z", dist.Normal(m * jnp.ones(4), 1.0).to_event(1)), P("data")))

    for f in (lanes, plain, placed):
        with jax.set_mesh(mesh), pytest.raises(vipl.errors.ProgramError, match="pass the array as an argument"):
            jax.jit(f.estimate)(KEY, 0.7)
    with pytest.raises(vipl.errors.ProgramError, match="pass the array as an argument"):
        lanes.estimate(KEY, 0.7)


@check
def a_named_mesh_axis_reaches_the_lanes():
    mesh = make_mesh("Auto")

    @vipl.expectation
    def f(m, x):
        return jnp.mean(jax.vmap(lambda r: sample("z", dist.Normal(m * r.sum(), 1.0)) ** 2, spmd_axis_name="data")(x))

    run = jax.jit(lambda x: f.value_and_grad(KEY, 0.7, x))
    want = run(jnp.asarray(ROWS))
    with jax.set_mesh(mesh):
        equal(run(spread(mesh)), want)


@check
def compiled_with_shardings():
    mesh = make_mesh("Auto")
    spec = NamedSharding(mesh, P("data"))
    run = jax.jit(lambda x: elbo.value_and_grad(KEY, 0.7, x), in_shardings=spec)
    equal(run(ROWS), elbo.value_and_grad(KEY, 0.7, jnp.asarray(ROWS)))


def main():
    jax.config.update("jax_enable_x64", True)
    told = {}
    for name, fn in CHECKS.items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        try:
            fn()
            told[name] = None
        except Exception:
            told[name] = traceback.format_exc()[-3000:]
    print(json.dumps(told))


if __name__ == "__main__":
    main()
