"""Every estimator, in every structure, against exact values, gradients and Hessians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vipl
from tests.helpers.cases import FAMILIES, exact_value, program, table
from vipl import Enumerate, MeasureValued, Reparam
from vipl.testing import assert_unbiased

TABLE = table()


def _id(case):
    structure, family, estimator = case
    return f"{structure}-{family}-{type(estimator).__name__}{'' if getattr(estimator, 'baseline', None) is None else '-b'}"


def second_order(estimator, family):
    """Where a Hessian is promised; JAX's second derivatives of implicit draws are slow and checked for one family."""
    if isinstance(estimator, MeasureValued):
        return False
    return not isinstance(estimator, Reparam) or family in ("normal", "gamma")


@pytest.mark.parametrize("case", TABLE, ids=_id)
def test_value_gradient_and_hessian_are_unbiased(case, key):
    structure, name, estimator = case
    family = FAMILIES[name]
    objective = program(structure, family, estimator)
    theta = jnp.array(family.theta)
    hessian = second_order(estimator, name)

    def draw(key, factor):
        value, grad = objective.value_and_grad(key, theta, factor)
        out = {"value": value, "grad": grad}
        if hessian:
            out["hessian"] = jax.hessian(lambda t: objective.estimate(key, t, factor))(theta)
        return out

    value = exact_value(structure, family)
    exact = {"value": value(theta), "grad": jax.grad(value)(theta)}
    if hessian:
        exact["hessian"] = jax.hessian(value)(theta)
    num = 400 if isinstance(estimator, Enumerate) and structure not in ("cond",) else 200_000
    slope = float(np.abs(exact["grad"]).max())
    resolution = {k: max(0.5 * slope, 0.05) if k == "hessian" else 0.25 * slope for k in exact}
    resolution["value"] = 0.05
    assert_unbiased(draw, exact, key=key, args=(1.0,), num=num, resolution=resolution)
    with pytest.raises(AssertionError, match="z = "):
        assert_unbiased(draw, exact, key=key, args=(0.8,), num=num, resolution=resolution)


def test_the_table_is_complete():
    assert {type(e) for _, _, e in TABLE} == {vipl.Reparam, vipl.Score, Enumerate, MeasureValued}
    print(f"\nconformance: {len(TABLE)} cases, each with value, gradient, Hessian where promised, and a broken twin")
