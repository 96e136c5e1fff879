"""Every estimator, in every structure, against exact values, gradients and Hessians.

What each case sees: a bias of 0.05 in the value; of a quarter of the gradient's largest entry, in the gradient; of half
of it, and of no less than 0.1, in the Hessian. In 53 of the 123 cases with a Hessian, some in every structure, that is
less than the Hessian's own largest entry, so that one that is zero would be seen; and so it would in all cases of
`Enumerate`, which has no noise. In the others the Hessian is small beside its noise, and a twin is caught by its
gradient. (`Relax` has a test of its own second derivatives in `tests/estimators/test_estimators.py`.)
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vipl
from tests.helpers.cases import FAMILIES, exact_value, program, table
from vipl import ARM, CoupledAlternative, DisARM, ImplicitReparam, LocalEnumerate, MeasureValued, Reparam
from vipl.testing import assert_unbiased

TABLE = table()


def _id(case):
    structure, family, estimator = case
    return (
        f"{structure}-{family}-{type(estimator).__name__}{'' if getattr(estimator, 'baseline', None) is None else '-b'}"
    )


def second_order(estimator, family):
    """Where a Hessian is promised; JAX's second derivatives of implicit draws are slow and checked for one family."""
    if isinstance(estimator, (MeasureValued, LocalEnumerate, CoupledAlternative, ARM, DisARM)):
        return False
    if isinstance(estimator, ImplicitReparam) and family == "gamma_shape":
        return False  # JAX has no second derivative of the incomplete gamma function in its shape
    return not isinstance(estimator, Reparam) or family in ("normal", "gamma")


@functools.cache
def exact_derivatives(structure, name):
    """Value, gradient and Hessian of the exact sum or integral."""
    value, theta = exact_value(structure, FAMILIES[name]), jnp.array(FAMILIES[name].theta)
    return jax.jit(lambda t: {"value": value(t), "grad": jax.grad(value)(t), "hessian": jax.hessian(value)(t)})(theta)


@pytest.mark.parametrize("case", TABLE, ids=_id)
def test_value_gradient_and_hessian_are_unbiased(case, key):
    structure, name, estimator = case
    family = FAMILIES[name]
    objective = program(structure, family, estimator)
    theta = jnp.array(family.theta)
    hessian = second_order(estimator, name)

    def draw(key, factor):
        def gradient(theta):
            value, grad = objective.value_and_grad(key, theta, factor)
            return grad, {"value": value, "grad": grad}

        if not hessian:
            return gradient(theta)[1]
        second, out = jax.jacfwd(gradient, has_aux=True)(theta)  # as jax.hessian, in one program
        return out | {"hessian": second}

    exact = exact_derivatives(structure, name)
    exact = exact if hessian else {k: x for k, x in exact.items() if k != "hessian"}
    slope = float(np.abs(exact["grad"]).max())
    resolution = {"value": 0.05, "grad": 0.25 * slope, "hessian": max(0.5 * slope, 0.1)}
    test = functools.partial(assert_unbiased, draw, exact, key=key, resolution={k: resolution[k] for k in exact})
    test(args=(1.0,))
    with pytest.raises(AssertionError, match="z = "):
        test(args=(0.7,))


def test_the_table_is_complete():
    every = {e for e in vars(vipl).values() if isinstance(e, type) and issubclass(e, vipl.estimators.Estimator)}
    biased = {e for e in every if issubclass(e, vipl.Biased)}
    assert {type(e) for _, _, e in TABLE} == every - biased - {vipl.estimators.Estimator}
    print(f"\nconformance: {len(TABLE)} cases, each with value, gradient, Hessian where promised, and a broken twin")
