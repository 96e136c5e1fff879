"""The part of the table of `tests.helpers.families` with vectors, matrices, and families made of others."""

import itertools

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.tree_util import Partial

from tests.helpers.formulas import (
    car,
    cholesky_slope,
    circulant,
    copula,
    corr,
    euler,
    exp,
    expm1,
    gamma,
    half_log_det,
    inverse_wishart,
    lgamma,
    lkj,
    log,
    log1p,
    log_ndtr,
    log_upper,
    mixture,
    mp,
    mvn,
    mvn_cov,
    normal,
    outer,
    pi,
    projected,
    projected3,
    sine,
    softplus,
    square,
    state_space,
    tril,
    von_mises,
    walk,
    wishart,
)


def jtril(v):
    n = {3: 2, 6: 3}[v.shape[-1]]
    return jnp.zeros((n, n), v.dtype).at[np.tril_indices(n)].set(v)


def gram(v):
    return jtril(v) @ jtril(v).T


def jcorr(v):
    a, b, c = v
    return jnp.stack([1.0 + 0 * a, a, b, a, 1.0 + 0 * a, c, b, c, 1.0 + 0 * a]).reshape(3, 3)


def sde(a, s, x, t):
    return -a * x * jnp.cos(t), s + 0 * x


UNIT = [0.3, 0.2, 0.5]
TRIL = [1.3, 0.4, 0.7]
TIMES = [0.0, 0.125, 0.375, 0.5]

VECTORS = {
    # --- vectors ---
    "Dirichlet": (
        dist.Dirichlet,
        lambda x, a: lgamma(sum(a)) + sum((b - 1) * log(y) - lgamma(b) for y, b in zip(x, a, strict=True)),
        [(UNIT, [1.4, 0.2, 3.0]), ([1e-20, 0.3, 0.7], [1e-3, 1.0, 100.0]), (UNIT, [1.0, 1.0, 1.0]),
         (UNIT, [1e6, 0.5, 20.0]), (UNIT, [300.0, 200.0, 500.0])],
    ),
    "MultivariateNormal": (
        lambda m, s: dist.MultivariateNormal(m, scale_tril=jtril(s)), lambda x, m, s: mvn(x, m, tril(s)),
        [([0.3, 0.8], [0.1, 0.2], TRIL), ([30.0, -20.0], [0.1, 0.2], [1e-3, 0.4, 1e3])],
    ),
    "LowRankMultivariateNormal": (
        lambda m, f, d: dist.LowRankMultivariateNormal(m, f[:, None], d),
        lambda x, m, f, d: mvn_cov(x, m, outer(f, d)),
        [([0.3, 0.8], [0.1, 0.2], [0.7, -0.4], [0.5, 1.5]), ([0.3, 0.8], [0.1, 0.2], [10.0, -4.0], [0.01, 0.02])],
    ),
    "MultivariateStudentT": (
        lambda v, m, s: dist.MultivariateStudentT(v, m, jtril(s)),
        lambda x, v, m, s: lgamma(v / 2 + 1) - lgamma(v / 2) - log(v * pi) - half_log_det(tril(s))
        - (v / 2 + 1) * log1p(square(mp.lu_solve(tril(s), mp.matrix([x[0] - m[0], x[1] - m[1]]))) / v),
        [([0.3, 0.8], 2.5, [0.1, 0.2], TRIL), ([0.3, 0.8], 1e5, [0.1, 0.2], TRIL), ([1e6, 0.8], 2.5, [0.1, 0.2], TRIL)],
    ),
    "CirculantNormal": (
        lambda m, r: dist.CirculantNormal(m, jnp.stack([r[0], r[1], r[1]])),
        lambda x, m, r: mvn_cov(x, m, circulant([r[0], r[1], r[1]])),
        [([0.3, 0.8, -0.2], [0.1, 0.2, 0.3], [1.3, 0.4])],
    ),
    "GaussianRandomWalk": (
        lambda s: dist.GaussianRandomWalk(s, 3), walk, [([0.3, 0.8, -0.2], 1.2), ([0.3, 0.8, 50.0], 0.1)]
    ),
    "MatrixNormal": (
        lambda m, a, b: dist.MatrixNormal(m.reshape(2, 2), jtril(a), jtril(b)),
        lambda x, m, a, b: mvn(x, m, mp.matrix([[u * v for u, v in zip(
            [tril(a)[i, k] for k in (0, 0, 1, 1)], [tril(b)[j, k] for k in (0, 1, 0, 1)], strict=True)]
            for i, j in itertools.product((0, 1), (0, 1))])),
        [([0.3, 0.8, -0.2, 0.1], [0.1, 0.2, 0.3, 0.4], TRIL, [0.6, -0.3, 1.7])], lambda x: x.reshape(2, 2),
    ),
    "ZeroSumNormal": (
        lambda s: dist.ZeroSumNormal(s, (3,)),
        lambda x, s: normal(x[0], 0, s) + normal(x[1], 0, s) + normal(x[0] + x[1], 0, s) - normal(0, 0, s),
        [([0.3, 0.8], 1.2), ([30.0, -8.0], 0.1)], lambda x: jnp.stack([x[0], x[1], -x[0] - x[1]]),
    ),
    "ProjectedNormal": (
        dist.ProjectedNormal, projected,
        [(0.3, [0.8, -0.4]), (0.3, [8.0, -4.0]), (0.3, [300.0, -100.0]), (2.9, [2.3, -1.0]), (3.0, [8.0, -4.0]),
         (2.9, [300.0, -100.0])],
        lambda a: jnp.stack([jnp.cos(a), jnp.sin(a)]),
    ),
    "ProjectedNormal, of 3": (
        dist.ProjectedNormal, projected3,
        [([0.3, 1.2], c) for c in ([0.8, -0.4, 0.3], [300.0, 100.0, 50.0], [-2.4, -0.4, -0.3], [-8.0, -4.0, -3.0],
                                   [-300.0, -100.0, -50.0])],
        lambda a: jnp.stack([jnp.cos(a[0]) * jnp.sin(a[1]), jnp.sin(a[0]) * jnp.sin(a[1]), jnp.cos(a[1])]),
    ),
    "SineBivariateVonMises": (
        dist.SineBivariateVonMises, sine,
        [([0.3, 0.8], 0.1, 0.2, 1.3, 1.7, 0.5), ([0.3, 0.8], 0.1, 0.2, 30.0, 20.0, 5.0)]
    ),
    "SineSkewed": (
        lambda m, k, s: dist.SineSkewed(dist.VonMises(m, k).to_event(1), s),
        lambda x, m, k, s: sum(von_mises(*v) for v in zip(x, m, k, strict=True))
        + log1p(sum(c * mp.sin(a - b) for a, b, c in zip(x, m, s, strict=True))),
        [([0.3, 0.8], [0.1, 0.2], [1.3, 1.7], [0.5, -0.3])],
    ),
    # --- matrices, by the free entries of their Cholesky factors ---
    "LKJ": (
        lambda c: dist.LKJ(3, c), lkj,
        [([0.3, -0.2, 0.5], 1.4), ([0.99, 0.3, 0.3], 0.1), ([0.3, 0.1, 0.2], 50.0)], jcorr,
    ),
    "LKJCholesky": (
        lambda c: dist.LKJCholesky(3, c),
        lambda v, c: lkj(v, c) + log(corr(v)[1, 1]),
        [([0.3, -0.2, 0.5], 1.4), ([0.99, 0.3, 0.3], 0.1), ([0.3, 0.1, 0.2], 50.0)],
        lambda v: jnp.linalg.cholesky(jcorr(v), symmetrize_input=False),
    ),
    "Wishart": (
        lambda v, s: dist.Wishart(v, scale_tril=jtril(s)), wishart,
        [([1.1, 0.3, 0.8], 4.5, TRIL), ([10.0, 0.3, 0.1], 100.0, TRIL)], gram,
    ),
    "WishartCholesky": (
        lambda v, s: dist.WishartCholesky(v, scale_tril=jtril(s)), lambda x, v, s: wishart(x, v, s) + cholesky_slope(x),
        [([1.1, 0.3, 0.8], 4.5, TRIL), ([10.0, 0.3, 0.1], 100.0, TRIL)], jtril,
    ),
    "InverseWishart": (
        lambda v, s: dist.InverseWishart(v, scale_tril=jtril(s)), inverse_wishart,
        [([1.1, 0.3, 0.8], 4.5, TRIL), ([0.1, 0.03, 0.1], 100.0, TRIL)], gram,
    ),
    "InverseWishartCholesky": (
        lambda v, s: dist.InverseWishartCholesky(v, scale_tril=jtril(s)),
        lambda x, v, s: inverse_wishart(x, v, s) + cholesky_slope(x),
        [([1.1, 0.3, 0.8], 4.5, TRIL), ([0.1, 0.03, 0.1], 100.0, TRIL)], jtril,
    ),
    # --- made of others ---
    "EulerMaruyama": (
        lambda a, s: dist.EulerMaruyama(jnp.asarray(TIMES, a.dtype), Partial(sde, a, s), dist.Normal(0.0, 2.0)),
        lambda x, a, s: euler(x, a, s, [mp.mpf(t) for t in TIMES]),
        [([0.3, 0.8, -0.2, 0.1], 0.7, 1.2), ([0.3, 8.0, -20.0, 0.1], 10.0, 0.1)],
    ),
    "GaussianStateSpace": (
        lambda a, s: dist.GaussianStateSpace(2, a.reshape(2, 2), scale_tril=jtril(s)), state_space,
        [([0.3, 0.8, -0.2, 0.1], [0.9, 0.2, -0.1, 0.7], TRIL)], lambda x: x.reshape(2, 2),
    ),
    "CAR": (
        lambda m, r, p: dist.CAR(m, r, p, np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])), car,
        [([0.3, 0.8, -0.2], [0.1, 0.2, 0.3], 0.6, 1.3), ([0.3, 0.8, -0.2], [0.1, 0.2, 0.3], 0.99, 100.0)],
    ),
    "MixtureSameFamily": (
        lambda w, m, s: dist.MixtureSameFamily(dist.CategoricalProbs(w), dist.Normal(m, s)),
        lambda x, w, m, s: mixture(w, map(lambda *p: normal(x, *p), m, s)),
        [(0.3, UNIT, [0.1, -1.0, 2.0], [1.2, 0.7, 0.4]), (60.0, UNIT, [0.1, -1.0, 2.0], [1.2, 0.7, 0.4]),
         (0.3, [1e-30, 0.5, 0.5], [0.1, -1.0, 40.0], [1.2, 0.7, 0.4])],
    ),
    "MixtureGeneral": (
        lambda t, m, s, r: dist.MixtureGeneral(
            dist.CategoricalLogits(t), [dist.Normal(m, s), dist.Laplace(m, r)], support=dist.constraints.real
        ),
        lambda x, t, m, s, r: mixture(map(exp, t), [normal(x, m, s), -abs(x - m) / r - log(2 * r)]),
        [(0.3, [0.3, -0.2], 0.1, 1.2, 0.7), (60.0, [0.3, -20.0], 0.1, 1.2, 0.7)],
    ),
    "FoldedDistribution": (
        lambda m, s: dist.FoldedDistribution(dist.Normal(m, s)),
        lambda x, m, s: log(exp(normal(x, m, s)) + exp(normal(-x, m, s))),
        [(0.3, 0.1, 1.2), (50.0, -1.0, 1.0), (0.3, 40.0, 1.0)],
    ),
    "LeftCensoredDistribution": (
        lambda m, s: dist.LeftCensoredDistribution(dist.Normal(m, s), True), lambda x, m, s: log_ndtr((x - m) / s),
        [(0.3, 0.1, 1.2), (-5.0, 0.1, 1.2), (-50.0, 0.1, 1.2), (5.0, 0.1, 0.5)],
    ),
    "LeftCensoredDistribution, Exponential": (
        lambda r: dist.LeftCensoredDistribution(dist.Exponential(r), True), lambda x, r: log(-expm1(-r * x)),
        [(0.3, 1.2), (1e-20, 1.2), (50.0, 1.2)],
    ),
    "LeftCensoredDistribution, Logistic": (
        lambda m, s: dist.LeftCensoredDistribution(dist.Logistic(m, s), True), lambda x, m, s: -softplus(-(x - m) / s),
        [(0.3, 0.1, 1.2), (-200.0, 0.1, 1.2)],
    ),
    "RightCensoredDistribution": (
        lambda m, s: dist.RightCensoredDistribution(dist.Normal(m, s), True), lambda x, m, s: log_ndtr((m - x) / s),
        [(0.3, 0.1, 1.2), (5.0, 0.1, 1.2), (50.0, 0.1, 1.2), (-5.0, 0.1, 0.5)],
    ),
    "RightCensoredDistribution, not censored": (
        lambda m, s: dist.RightCensoredDistribution(dist.Normal(m, s), False), normal, [(0.3, 0.1, 1.2)],
    ),
    "RightCensoredDistribution, LogNormal": (
        lambda m, s: dist.RightCensoredDistribution(dist.LogNormal(m, s), True),
        lambda x, m, s: log_ndtr((m - log(x)) / s), [(0.3, 0.1, 1.2), (1e20, 0.1, 1.2)],
    ),
    "RightCensoredDistribution, Weibull": (
        lambda s, k: dist.RightCensoredDistribution(dist.Weibull(s, k), True), lambda x, s, k: -((x / s) ** k),
        [(0.3, 1.2, 1.4), (50.0, 1.2, 1.4)],
    ),
    "RightCensoredDistribution, Gamma": (
        lambda a, r: dist.RightCensoredDistribution(dist.Gamma(a, r), True), lambda x, a, r: log_upper(a, r * x),
        [(0.3, 1.2, 1.4)],
    ),
    "GaussianCopula": (
        lambda m, s, r: dist.GaussianCopula(dist.Normal(m, s), jnp.stack([1 + 0 * r, r, r, 1 + 0 * r]).reshape(2, 2)),
        copula, [([0.3, 0.8], [0.1, 0.2], [1.2, 0.7], 0.5), ([4.0, 0.8], [0.1, 0.2], [1.2, 0.7], 0.5)],
    ),
    "LeftTruncatedGamma": (
        lambda a, r, b: dist.LeftTruncatedGamma(dist.Gamma(a, r), low=b),
        lambda x, a, r, b: gamma(x, a, r) - log_upper(a, r * b), [(2.0, 1.4, 1.2, 0.5), (7.0, 1.4, 1.2, 6.0)],
    ),
    "RightTruncatedGamma": (
        lambda a, r, b: dist.RightTruncatedGamma(dist.Gamma(a, r), high=b),
        lambda x, a, r, b: gamma(x, a, r) - log(mp.gammainc(a, 0, r * b, regularized=True)),
        [(0.5, 1.4, 1.2, 2.0), (1e-20, 1.4, 1.2, 1e-10)],
    ),
    "TwoSidedTruncatedGamma": (
        lambda a, r, b, c: dist.TwoSidedTruncatedGamma(dist.Gamma(a, r), low=b, high=c),
        lambda x, a, r, b, c: gamma(x, a, r) - log(mp.gammainc(a, r * b, r * c, regularized=True)),
        [(0.7, 1.4, 1.2, 0.5, 2.0)],
    ),
    "Delta": (lambda t: dist.Delta(2, t), lambda x, t: t if x == 2 else -mp.inf, [(2, 0.3), (3, 0.3)]),
}  # fmt: skip
