"""Every family of NumPyro against its formula: log density and derivatives, at ordinary and extreme points.

The law. All inputs t are numbers of float32; the exact f, its gradient g and its Hessian H are those at these numbers.
Evaluated in float32 or in float64, with that precision's eps,

    |error of f|   <= C eps (1 + |f|   + Σ_j |t_j g_j|)
    |error of g_i| <= C eps (1 + |g_i| + Σ_j |t_j H_ij|)

with the same C for all: what rounding of the inputs would do, and no more. What is tested is the density of a site, as
`assess` of a program with one site gives it.

An entry of FAMILIES: the distribution of its parameters; the formula of the value and the parameters; points, which are
a value and parameters. Floats are differentiated, integers are not. A list is a vector. A fourth part makes a value of
the first numbers of a point: a matrix from its free entries.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from mpmath import mp

import vipl
from vipl import sample
from vipl.distributions._stable import stabilize

C = 64

log, exp, log1p, expm1, pi, lgamma = mp.log, mp.exp, mp.log1p, mp.expm1, mp.pi, mp.loggamma


def xlog(x, y):
    return mp.mpf(0) if x == 0 else (x * log(y) if y > 0 else -mp.inf)


def softplus(x):
    return log1p(exp(x)) if x < 0 else x + log1p(exp(-x))


def lbeta(a, b):
    return lgamma(a) + lgamma(b) - lgamma(a + b)


def choose(n, k):
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)


def normal(x, m=0, s=1):
    return -(((x - m) / s) ** 2) / 2 - log(s) - log(2 * pi) / 2


def mass(low, high):
    """The mass of a standard Normal between two bounds."""
    if low > 0:
        low, high = -high, -low
    return (mp.erfc(-high / mp.sqrt(2)) - mp.erfc(-low / mp.sqrt(2))) / 2


def gamma(x, a, r):
    return a * log(r) - lgamma(a) + (a - 1) * log(x) - r * x


def beta(x, a, b):
    return (a - 1) * log(x) + (b - 1) * log(1 - x) - lbeta(a, b)


def poisson(x, r):
    return xlog(x, r) - r - lgamma(x + 1)


def negative_binomial(x, a, r):
    """Counts of a Poisson whose rate is a Gamma(a, r)."""
    return lgamma(a + x) - lgamma(a) - lgamma(x + 1) - a * log1p(1 / r) - x * log1p(r)


def student(z, v):
    return lgamma((v + 1) / 2) - lgamma(v / 2) - log(v * pi) / 2 - (v + 1) / 2 * log1p(z * z / v)


def asymmetric_laplace(z, left, right):
    return (z / left if z < 0 else -z / right) - log(left + right)


def categorical(k, logits):
    return logits[int(k)] - log(sum(map(exp, logits)))


def tril(v):
    """A lower triangular matrix, 2 x 2 or 3 x 3, of its entries, row by row."""
    n = {3: 2, 6: 3}[len(v)]
    m, it = mp.zeros(n), iter(v)
    for i in range(n):
        for j in range(i + 1):
            m[i, j] = next(it)
    return m


def jtril(v):
    n = {3: 2, 6: 3}[v.shape[-1]]
    return jnp.zeros((n, n), v.dtype).at[np.tril_indices(n)].set(v)


def gram(v):
    return jtril(v) @ jtril(v).T


def half_log_det(m):
    return sum(log(m[i, i]) for i in range(m.rows))


def square(m):
    return sum(x * x for x in m)


def multigamma(a, p):
    return p * (p - 1) / mp.mpf(4) * log(pi) + sum(lgamma(a - mp.mpf(i) / 2) for i in range(p))


def mvn(x, m, scale):
    z = mp.lu_solve(scale, mp.matrix([a - b for a, b in zip(x, m, strict=True)]))
    return -square(z) / 2 - half_log_det(scale) - len(x) * log(2 * pi) / 2


def mvn_cov(x, m, cov):
    return mvn(x, m, mp.cholesky(cov))


def outer(f, d):
    """A covariance: a factor with one column, and a diagonal."""
    return mp.matrix([[f[i] * f[j] + (d[i] if i == j else 0) for j in range(len(f))] for i in range(len(f))])


def wishart(x, v, s):
    """The density of X = L Lᵀ; x are the entries of L, s those of the scale's Cholesky factor."""
    x, s = tril(x), tril(s)
    p = x.rows
    trace = square(mp.lu_solve(s, x[:, 0])) + square(mp.lu_solve(s, x[:, 1]))
    return (v - p - 1) * half_log_det(x) - trace / 2 - v * p * log(2) / 2 - v * half_log_det(s) - multigamma(v / 2, p)


def inverse_wishart(x, v, s):
    x, s = tril(x), tril(s)
    p = x.rows
    trace = square(mp.lu_solve(x, s[:, 0])) + square(mp.lu_solve(x, s[:, 1]))
    return v * half_log_det(s) - v * p * log(2) / 2 - multigamma(v / 2, p) - (v + p + 1) * half_log_det(x) - trace / 2


def cholesky_slope(x):
    """The log determinant of L -> L Lᵀ, 2 x 2."""
    return 2 * log(2) + 2 * log(x[0]) + log(x[2])


def corr(v):
    """The Cholesky factor of a 3 x 3 correlation matrix."""
    return mp.cholesky(mp.matrix([[1, v[0], v[1]], [v[0], 1, v[2]], [v[1], v[2], 1]]))


def jcorr(v):
    a, b, c = v
    return jnp.stack([1.0 + 0 * a, a, b, a, 1.0 + 0 * a, c, b, c, 1.0 + 0 * a]).reshape(3, 3)


def lkj(v, c):
    d = 3
    normalizer = sum(mp.mpf(k) / 2 * log(pi) + lgamma(c + mp.mpf(d - 1 - k) / 2) for k in range(1, d))
    normalizer -= (d - 1) * lgamma(c + mp.mpf(d - 1) / 2)
    return 2 * (c - 1) * half_log_det(corr(v)) - normalizer


def power_law(x, a, low, high):
    b = a + 1
    z = log(high / low) if b == 0 else (high**b - low**b) / b
    return a * log(x) - log(z)


def von_mises(x, m, k):
    return k * mp.cos(x - m) - log(2 * pi * mp.besseli(0, k))


def sine(x, m1, m2, k1, k2, r):
    terms = mp.nsum(
        lambda i: mp.binomial(2 * i, i) * (r * r / (4 * k1 * k2)) ** i * mp.besseli(i, k1) * mp.besseli(i, k2),
        [0, 40], method="d",
    )  # fmt: skip
    u, v = x[0] - m1, x[1] - m2
    return k1 * mp.cos(u) + k2 * mp.cos(v) + r * mp.sin(u) * mp.sin(v) - log(4 * pi**2 * terms)


def projected(a, c):
    """The density of the angle a of a Normal with mean c and unit variance."""
    t = c[0] * mp.cos(a) + c[1] * mp.sin(a)
    return -(c[0] ** 2 + c[1] ** 2) / 2 - log(2 * pi) + log(1 + t * mp.ncdf(t) / mp.npdf(t))


def polya_gamma(x):
    """Truncated at 2.5."""

    def term(n, c):
        return (-1) ** n * (2 * n + 1) / mp.sqrt(2 * pi * x**3) * exp(-((2 * n + 1) ** 2) / (8 * x)) * c

    return log(sum(term(n, 1) for n in range(80)))


def gate(x, g, base, zero):
    """log of g [x = 0] + (1 - g) base; and of a hurdle, whose base has no zero."""
    if zero:
        return log(g + (1 - g) * exp(base)) if x == 0 else log(1 - g) + base
    return log(g) if x == 0 else log(1 - g) + base


def positive(base, zero):
    """A log probability of counts, given that they are not zero; log p(0) is `zero`."""
    return base - log(-expm1(zero))


def expit(t):
    return 1 / (1 + exp(-t))


def cuts(k, t, c):
    """Ordered logistic: σ(c_k - t) - σ(c_{k-1} - t)."""
    k = int(k)
    high = 1 if k == len(c) else expit(c[k] - t)
    return log(high - (0 if k == 0 else expit(c[k - 1] - t)))


def truncated(x, log_p, cdf, low, high):
    return log_p(x) - log(cdf(high) - cdf(low))


def walk(x, s):
    return normal(x[0], 0, s) + sum(normal(b - a, 0, s) for a, b in itertools.pairwise(x))


def circulant(row):
    n = len(row)
    return mp.matrix([[row[(i - j) % n] for j in range(n)] for i in range(n)])


def times(a, b):
    return [a[i] * b[j] for i, j in itertools.product(range(len(a)), range(len(b)))]


UNIT = [0.3, 0.2, 0.5]
TRIL = [1.3, 0.4, 0.7]

FAMILIES = {
    # --- real numbers ---
    "Normal": (dist.Normal, normal, [(0.3, 0.1, 1.2), (40.0, 0.0, 1.0), (1e-3, 0.0, 1e-3), (1e10, 0.0, 1.0)]),
    "Laplace": (dist.Laplace, lambda x, m, s: -abs(x - m) / s - log(2 * s), [(0.3, 0.1, 1.2), (1e6, 0.0, 1e-3)]),
    "AsymmetricLaplace": (
        dist.AsymmetricLaplace, lambda x, m, s, a: asymmetric_laplace(x - m, s * a, s / a),
        [(0.3, 0.1, 1.2, 0.7), (-40.0, 0.1, 1.2, 0.01), (40.0, 0.1, 1.2, 100.0)],
    ),
    "AsymmetricLaplaceQuantile": (
        dist.AsymmetricLaplaceQuantile, lambda x, m, s, q: asymmetric_laplace(x - m, s / (1 - q), s / q),
        [(0.3, 0.1, 1.2, 0.7), (-40.0, 0.1, 1.2, 0.001), (4.0, 0.1, 1.2, 0.999)],
    ),
    "Cauchy": (
        dist.Cauchy, lambda x, m, s: -log(pi * s) - log1p(((x - m) / s) ** 2),
        [(0.3, 0.1, 1.2), (1e6, 0.0, 1.0), (1e25, 0.0, 1.0), (1e-6, 0.0, 1.0)],
    ),
    "StudentT": (
        dist.StudentT, lambda x, v, m, s: student((x - m) / s, v) - log(s),
        [(0.3, 2.5, 0.1, 1.2), (3.0, 1e4, 0.1, 1.2), (3.0, 1e7, 0.1, 1.2),
         (1e20, 0.01, 0.0, 1.0), (1e25, 3.0, 0.0, 1.0)],
    ),
    "Logistic": (
        dist.Logistic, lambda x, m, s: -(x - m) / s - log(s) - 2 * softplus(-(x - m) / s),
        [(0.3, 0.1, 1.2), (60.0, 0.1, 0.3), (-60.0, 0.1, 0.3), (0.1, 0.1, 2.0)],
    ),
    "Gumbel": (
        dist.Gumbel, lambda x, m, s: -(x - m) / s - exp(-(x - m) / s) - log(s),
        [(0.3, 0.1, 1.2), (60.0, 0.1, 0.3), (-4.0, 0.1, 0.3)],
    ),
    "SoftLaplace": (
        dist.SoftLaplace, lambda x, m, s: log(2 / pi) - log(s) - softplus(-2 * abs(x - m) / s) - abs(x - m) / s,
        [(0.3, 0.1, 1.2), (60.0, 0.1, 0.3), (-60.0, 0.1, 0.3), (0.1, 0.1, 2.0)],
    ),
    "Uniform": (dist.Uniform, lambda x, a, b: -log(b - a), [(0.3, 0.1, 1.2), (0.5, -1e6, 1e6)]),
    # --- positive numbers ---
    "Exponential": (dist.Exponential, lambda x, r: log(r) - r * x, [(0.3, 1.2), (1e6, 10.0), (1e-20, 1e-6)]),
    "HalfNormal": (dist.HalfNormal, lambda x, s: normal(x, 0, s) + log(2), [(0.3, 1.2), (50.0, 1.0), (1e-20, 1.0)]),
    "HalfCauchy": (
        dist.HalfCauchy, lambda x, s: log(2 / pi / s) - log1p((x / s) ** 2),
        [(0.3, 1.2), (1e6, 1.0), (1e25, 1.0)],
    ),
    "Gamma": (
        dist.Gamma, gamma,
        [(0.3, 1.4, 1.2), (1e-20, 0.01, 1.0), (200.0, 1.0, 1.0), (1e-4, 2.0, 1e4)],
    ),
    "Chi2": (dist.Chi2, lambda x, v: gamma(x, v / 2, mp.mpf(0.5)), [(0.3, 1.4), (1e-20, 0.01), (200.0, 3.0)]),
    "InverseGamma": (
        dist.InverseGamma, lambda x, a, r: gamma(1 / x, a, r) - 2 * log(x),
        [(0.3, 1.4, 1.2), (1e15, 0.01, 1.0), (0.005, 1.0, 1.0)],
    ),
    "LogNormal": (
        dist.LogNormal, lambda x, m, s: normal(log(x), m, s) - log(x),
        [(0.3, 0.1, 1.2), (1e20, 0.0, 1.0), (1e-20, 0.0, 9.0)],
    ),
    "Weibull": (
        dist.Weibull, lambda x, s, k: log(k / s) + (k - 1) * log(x / s) - (x / s) ** k,
        [(0.3, 1.2, 1.4), (1e-20, 1.0, 0.01), (30.0, 2.0, 1.5), (0.99, 1.0, 100.0)],
    ),
    "Gompertz": (
        dist.Gompertz, lambda x, c, r: log(c * r) + r * x - c * expm1(r * x),
        [(0.3, 1.4, 1.2), (1e-6, 1.4, 1e-3), (20.0, 1e-6, 1.0)],
    ),
    "Dagum": (
        dist.Dagum,
        lambda x, p, a, b: log(a * p / x) + a * p * log(x / b) - (p + 1) * softplus(a * log(x / b)),
        [(0.3, 1.4, 1.2, 0.7), (1e6, 0.1, 3.0, 1.0), (1e-6, 0.1, 3.0, 1.0)],
    ),
    "Levy": (
        dist.Levy, lambda x, m, c: log(c / 2 / pi) / 2 - c / 2 / (x - m) - 3 * log(x - m) / 2,
        [(0.3, 0.1, 1.2), (1e20, 0.1, 1.2), (0.11, 0.1, 1.2)],
    ),
    "Pareto": (
        dist.Pareto, lambda x, s, a: log(a) + a * log(s) - (a + 1) * log(x),
        [(1.5, 1.2, 1.4), (1e20, 1.0, 0.01), (1.21, 1.2, 100.0)],
    ),
    "LogUniform": (dist.LogUniform, lambda x, a, b: -log(x) - log(log(b / a)), [(0.3, 0.1, 1.2), (1.0, 1e-20, 1e20)]),
    "LowerTruncatedPowerLaw": (
        dist.LowerTruncatedPowerLaw, lambda x, a, low: a * log(x) + log(-1 - a) + (-1 - a) * log(low),
        [(1.5, -2.4, 1.2), (1e10, -1.01, 1.2), (1.3, -50.0, 1.2)],
    ),
    "DoublyTruncatedPowerLaw": (
        dist.DoublyTruncatedPowerLaw, power_law,
        [(1.5, -2.4, 1.2, 3.0), (1.5, 1.3, 1.2, 3.0), (1.5, -1.0, 1.2, 3.0), (1.5, -1.00001, 1.2, 3.0),
         (50.0, -30.0, 40.0, 60.0), (50.0, 30.0, 40.0, 60.0)],
    ),
    # --- intervals ---
    "Beta": (dist.Beta, beta, [(0.3, 1.4, 1.2), (1e-20, 0.01, 2.0), (0.999999, 2.0, 0.1)]),
    "BetaProportion": (
        dist.BetaProportion, lambda x, m, c: beta(x, m * c, (1 - m) * c),
        [(0.3, 0.4, 1.2), (1e-20, 0.01, 2.0)],
    ),
    "Kumaraswamy": (
        dist.Kumaraswamy, lambda x, a, b: log(a * b) + (a - 1) * log(x) + (b - 1) * log(-expm1(a * log(x))),
        [(0.3, 1.4, 1.2), (1e-20, 0.01, 2.0), (0.999999, 2.0, 0.1), (0.999999, 0.01, 5.0)],
    ),
    "RelaxedBernoulliLogits": (
        dist.RelaxedBernoulliLogits,
        lambda x, t, a: log(t) + a - (t + 1) * (log(x) + log(1 - x)) + 2 * t * log(1 - x)
        - 2 * softplus(a - t * log(x / (1 - x))),
        [(0.3, 0.7, 1.2), (1e-6, 0.1, 3.0), (0.999999, 0.1, -30.0)],
    ),
    "VonMises": (
        dist.VonMises, von_mises, [(0.3, 0.1, 1.2), (3.0, -3.0, 1e-3), (0.3, 0.1, 50.0), (0.01, 0.0, 5000.0)]
    ),
    "TruncatedPolyaGamma": (dist.TruncatedPolyaGamma, polya_gamma, [(0.3,), (0.01,), (2.4,)]),
    # --- truncated ---
    "TwoSidedTruncatedDistribution": (
        lambda m, s, a, b: dist.TruncatedNormal(m, s, low=a, high=b),
        lambda x, m, s, a, b: normal(x, m, s) - log(mass((a - m) / s, (b - m) / s)),
        [(0.3, 0.1, 1.2, -0.4, 2.0), (30.0, 0.0, 1.0, 29.0, 31.0), (-30.0, 0.0, 1.0, -31.0, -29.0)],
    ),
    "TwoSidedTruncatedDistribution, Cauchy": (
        lambda m, s, a, b: dist.TruncatedCauchy(m, s, low=a, high=b),
        lambda x, m, s, a, b: -log(s + (x - m) ** 2 / s) - log(mp.atan((b - m) / s) - mp.atan((a - m) / s)),
        [(0.3, 0.1, 1.2, -0.4, 2.0), (3e4, 0.0, 1.0, 2e4, 4e4), (-3e4, 0.0, 1.0, -4e4, -2e4)],
    ),
    "LeftTruncatedDistribution": (
        lambda m, s, a: dist.TruncatedNormal(m, s, low=a),
        lambda x, m, s, a: normal(x, m, s) - log(mass((a - m) / s, mp.inf)),
        [(0.3, 0.1, 1.2, -0.4), (30.0, 0.0, 1.0, 29.0), (0.3, 0.1, 1.2, -100.0)],
    ),
    "LeftTruncatedDistribution, Cauchy": (
        lambda m, s, a: dist.TruncatedCauchy(m, s, low=a),
        lambda x, m, s, a: -log(s + (x - m) ** 2 / s) - log(mp.atan2(s, a - m)),
        [(0.3, 0.1, 1.2, -0.4), (3e6, 0.0, 1.0, 1e6), (0.3, 0.1, 1.2, -1e6)],
    ),
    "RightTruncatedDistribution": (
        lambda m, s, b: dist.TruncatedNormal(m, s, high=b),
        lambda x, m, s, b: normal(x, m, s) - log(mass(-mp.inf, (b - m) / s)),
        [(0.3, 0.1, 1.2, 0.4), (-30.0, 0.0, 1.0, -29.0), (0.3, 0.1, 1.2, 100.0)],
    ),
    "RightTruncatedDistribution, Cauchy": (
        lambda m, s, b: dist.TruncatedCauchy(m, s, high=b),
        lambda x, m, s, b: -log(s + (x - m) ** 2 / s) - log(mp.atan2(s, m - b)),
        [(0.3, 0.1, 1.2, 0.4), (-3e6, 0.0, 1.0, -1e6), (0.3, 0.1, 1.2, 1e6)],
    ),
    # --- counts and categories ---
    "BernoulliLogits": (
        dist.BernoulliLogits, lambda x, t: -softplus(t if x == 0 else -t),
        [(0, 0.7), (1, 0.7), (0, 0.0), (0, 30.0), (1, 30.0), (0, -200.0), (1, -200.0)],
    ),
    "BernoulliProbs": (
        dist.BernoulliProbs, lambda x, p: xlog(x, p) + xlog(1 - x, 1 - p),
        [(0, 0.7), (1, 0.7), (1, 1e-30), (0, 1e-30), (0, 0.9999999), (0, 0.0), (1, 1.0), (1, 0.0)],
    ),
    "BinomialLogits": (
        dist.BinomialLogits, lambda x, t, n: choose(n, x) - x * softplus(-t) - (n - x) * softplus(t),
        [(3, 0.7, 10), (0, 0.0, 10), (10, 30.0, 10), (3, -60.0, 10), (300, -0.8, 1000), (300000, -0.8, 1000000)],
    ),
    "BinomialProbs": (
        dist.BinomialProbs, lambda x, p, n: choose(n, x) + xlog(x, p) + xlog(n - x, 1 - p),
        [(3, 0.7, 10), (0, 0.0, 10), (10, 1.0, 10), (3, 1e-30, 10), (300, 0.3, 1000), (300000, 0.3, 1000000)],
    ),
    "GeometricLogits": (
        dist.GeometricLogits, lambda x, t: -softplus(-t) - x * softplus(t),
        [(3, 0.7), (0, 40.0), (3, 40.0), (1000000, -14.0), (3, -200.0)],
    ),
    "GeometricProbs": (
        dist.GeometricProbs, lambda x, p: log(p) + xlog(x, 1 - p),
        [(3, 0.7), (0, 1.0), (3, 0.9999999), (1000000, 1e-6), (3, 1e-30)],
    ),
    "CategoricalLogits": (
        dist.CategoricalLogits, categorical, [(1, [0.3, 0.1, -0.7]), (0, [-200.0, 0.0, 30.0]), (2, [-200.0, 0.0, 30.0])]
    ),
    "CategoricalProbs": (
        dist.CategoricalProbs, lambda k, p: xlog(1, p[int(k)]),
        [(1, UNIT), (0, [1e-30, 0.0, 1.0]), (2, [1e-30, 0.0, 1.0])],
    ),
    "OrderedLogistic": (
        dist.OrderedLogistic, cuts,
        [(k, t, [-1.0, 0.5, 2.0]) for k in range(4) for t in (0.3, 30.0, -30.0)],
    ),
    "MultinomialLogits": (
        lambda t: dist.MultinomialLogits(t, 7, total_count_max=7),
        lambda x, t: lgamma(8) + sum(a * b - lgamma(a + 1) for a, b in zip(x, t, strict=True))
        - 7 * log(sum(map(exp, t))),
        [([2, 4, 1], [0.3, 0.1, -0.7]), ([7, 0, 0], [-200.0, 0.0, 30.0])],
    ),
    "MultinomialProbs": (
        lambda p: dist.MultinomialProbs(p, 7, total_count_max=7),
        lambda x, p: lgamma(8) + sum(xlog(a, b) - lgamma(a + 1) for a, b in zip(x, p, strict=True)),
        [([2, 4, 1], UNIT), ([3, 0, 4], [1e-30, 0.0, 1.0]), ([0, 0, 7], [1e-30, 0.0, 1.0])],
    ),
    "Poisson": (dist.Poisson, poisson, [(3, 1.2), (0, 0.0), (0, 1e-30), (3, 1e-30), (300, 300.0), (1000000, 1e6)]),
    "GammaPoisson": (
        dist.GammaPoisson, negative_binomial,
        [(3, 1.4, 1.2), (0, 1e-6, 1.2), (3, 1e-6, 1.2), (3, 1e6, 1e6), (10000, 2.0, 1e-4), (0, 2.0, 1e10)],
    ),
    "NegativeBinomial2": (
        dist.NegativeBinomial2, lambda x, m, a: negative_binomial(x, a, a / m),
        [(3, 1.4, 1.2), (3, 1.4, 1e-6), (3, 1.4, 1e6), (10000, 1e4, 2.0), (0, 1e-10, 2.0)],
    ),
    "NegativeBinomialLogits": (
        dist.NegativeBinomialLogits, lambda x, a, t: negative_binomial(x, a, exp(-t)),
        [(3, 1.4, 0.2), (0, 1.4, 200.0), (3, 1.4, -200.0), (3, 1e6, -13.0), (10000, 2.0, 9.0)],
    ),
    "NegativeBinomialProbs": (
        dist.NegativeBinomialProbs, lambda x, a, p: negative_binomial(x, a, 1 / p - 1),
        [(3, 1.4, 0.2), (0, 1.4, 1e-20), (3, 1.4, 1e-20), (3, 1.4, 0.9999999)],
    ),
    "BetaBinomial": (
        dist.BetaBinomial, lambda x, a, b, n: choose(n, x) + lbeta(x + a, n - x + b) - lbeta(a, b),
        [(3, 1.4, 1.2, 10), (0, 1e-6, 1.2, 10), (3, 1e5, 1e5, 10), (300, 1.4, 1.2, 1000)],
    ),
    "BetaNegativeBinomial": (
        dist.BetaNegativeBinomial,
        lambda x, a, b, n: lgamma(n + x) - lgamma(n) - lgamma(x + 1) + lbeta(a + x, b + n) - lbeta(a, b),
        [(3, 1.4, 1.2, 4.0), (3, 1e5, 1e5, 4.0), (1000, 1.4, 1.2, 4.0)],
    ),
    "DirichletMultinomial": (
        lambda a: dist.DirichletMultinomial(a, 7, total_count_max=7),
        lambda x, a: lgamma(8) + lgamma(sum(a)) - lgamma(sum(a) + 7)
        + sum(lgamma(n + b) - lgamma(b) - lgamma(n + 1) for n, b in zip(x, a, strict=True)),
        [([2, 4, 1], [1.4, 0.2, 3.0]), ([7, 0, 0], [1e-6, 1.0, 1e5])],
    ),
    "DiscreteUniform": (
        lambda: dist.DiscreteUniform(2, 9), lambda x: -log(mp.mpf(8)), [(3,), (9,)]
    ),
    "ZeroInflatedProbs": (
        lambda g, p: dist.ZeroInflatedProbs(dist.GeometricProbs(p), g),
        lambda x, g, p: gate(x, g, log(p) + xlog(x, 1 - p), True), [(0, 0.3, 0.2), (3, 0.3, 0.2), (3, 1e-30, 0.2)],
    ),
    "ZeroInflatedLogits": (
        lambda g, r: dist.ZeroInflatedLogits(dist.Poisson(r), g),
        lambda x, g, r: gate(x, expit(g), poisson(x, r), True),
        [(0, 0.3, 1.2), (3, 0.3, 1.2), (0, -60.0, 200.0), (0, 60.0, 1.2), (3, 60.0, 1.2)],
    ),
    "ZeroInflatedPoisson": (
        dist.ZeroInflatedPoisson, lambda x, g, r: gate(x, g, poisson(x, r), True),
        [(0, 0.3, 1.2), (3, 0.3, 1.2), (0, 1e-30, 200.0), (0, 0.9999999, 1.2), (3, 0.9999999, 1.2)],
    ),
    "HurdlePoisson": (
        dist.HurdlePoisson, lambda x, g, r: gate(x, g, positive(poisson(x, r), -r), False),
        [(0, 0.3, 1.2), (3, 0.3, 1.2), (3, 1e-30, 1.2), (3, 0.9999999, 1.2), (1, 0.3, 1e-6), (3, 0.3, 50.0)],
    ),
    "HurdleProbs": (
        lambda g, p: dist.HurdleProbs(dist.GeometricProbs(p), g),
        lambda x, g, p: gate(x, g, xlog(x - 1, 1 - p) + log(p), False),
        [(0, 0.3, 0.2), (3, 0.3, 0.2), (3, 0.3, 1e-6), (3, 0.3, 0.99999)],
    ),
    "HurdleLogits": (
        lambda g, r: dist.HurdleLogits(dist.Poisson(r), g),
        lambda x, g, r: gate(x, expit(g), positive(poisson(x, r), -r), False),
        [(0, 0.3, 1.2), (3, 0.3, 1.2), (3, 60.0, 1.2), (0, -60.0, 1.2), (1, 0.3, 1e-6)],
    ),
    "HurdleGamma": (
        dist.HurdleGamma, lambda x, g, a, r: gate(x, g, gamma(x, a, r) if x else 0, False),
        [(0, 0.3, 1.4, 1.2), (3.0, 0.3, 1.4, 1.2), (1e-20, 0.9999999, 0.01, 1.0)],
    ),
    "HurdleLogNormal": (
        dist.HurdleLogNormal, lambda x, g, m, s: gate(x, g, normal(log(x), m, s) - log(x) if x else 0, False),
        [(0, 0.3, 0.1, 1.2), (3.0, 0.3, 0.1, 1.2), (1e-20, 0.9999999, 0.1, 9.0)],
    ),
    # --- vectors ---
    "Dirichlet": (
        dist.Dirichlet,
        lambda x, a: lgamma(sum(a)) + sum((b - 1) * log(y) - lgamma(b) for y, b in zip(x, a, strict=True)),
        [(UNIT, [1.4, 0.2, 3.0]), ([1e-20, 0.3, 0.7], [1e-3, 1.0, 100.0])],
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
        dist.ProjectedNormal, projected, [(0.3, [0.8, -0.4]), (0.3, [8.0, -4.0])],
        lambda a: jnp.stack([jnp.cos(a), jnp.sin(a)]),
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
}  # fmt: skip

# Points that break the law, with the largest error of each dtype in its units (C = 1), and why.
NOT_EXACT = {
    "Gamma": ((1e4, 1e4, 1.0), "float32 710, float64 16399: a difference of large terms, one of them log Γ"),
    "Chi2": ((1e4, 1e4), "float32 396, float64 2891: as Gamma"),
    "Beta": ((0.3, 300.0, 700.0), "float64 143: as Gamma"),
    "BetaProportion": ((0.3, 0.3, 1000.0), "float64 191: as Gamma"),
    "InverseGamma": ((1e20, 0.01, 1.0), "float32 inf: the slope 1 / x² of its transform underflows"),
    "ProjectedNormal": (
        (3.0, [8.0, -4.0]),
        "float32 2e7, float64 1e16: opposite to the mean, 1 + t Φ(t) / φ(t) loses its digits for t = c x < -4",
    ),
}  # fmt: skip

LEFT_OUT = {
    **dict.fromkeys(
        ("Distribution", "ExpandedDistribution", "Independent", "MaskedDistribution", "TransformedDistribution",
         "FoldedDistribution", "MixtureGeneral", "MixtureSameFamily", "LeftCensoredDistribution",
         "RightCensoredDistribution", "IntervalCensoredDistribution", "GaussianCopula"),
        "made of other distributions, with no formula of its own",
    ),
    **dict.fromkeys(("ImproperUniform", "Unit", "Delta"), "no density to speak of"),
    **dict.fromkeys(("EulerMaruyama", "GaussianStateSpace"), "a process of Normal steps"),
    "CAR": "a Normal by a graph's precision matrix",
    "GaussianCopulaBeta": "the derivative of an incomplete beta function in its parameters, which JAX lacks",
    **dict.fromkeys(
        ("LeftTruncatedGamma", "RightTruncatedGamma", "TwoSidedTruncatedGamma"),
        "by the incomplete gamma function, whose accuracy is JAX's",
    ),
}  # fmt: skip


def flat(point):
    """The numbers of a point, and whether each has a derivative."""
    leaves = [x for part in point for x in (part if isinstance(part, list) else [part])]
    return [mp.mpf(float(np.float32(x))) for x in leaves], [isinstance(x, float) for x in leaves]


def like(point, numbers):
    it = iter(numbers)
    return [[next(it) for _ in part] if isinstance(part, list) else next(it) for part in point]


def exact(formula, point):
    """A log density, its gradient, and what rounding of the inputs does to each; by central differences."""
    with mp.workdps(80):
        t, free = flat(point)
        indices = [i for i, yes in enumerate(free) if yes]

        def f(*steps):
            moved = list(t)
            for i, h in steps:
                moved[i] += h
            return mp.re(formula(*like(point, moved)))

        h = [mp.mpf(10) ** -20 * (abs(x) or 1) for x in t]
        value = f()
        if not mp.isfinite(value):
            return float(value), None, None, None
        up, down = {i: f((i, h[i])) for i in indices}, {i: f((i, -h[i])) for i in indices}
        g = {i: (up[i] - down[i]) / (2 * h[i]) for i in indices}
        hess = {(i, i): (up[i] - 2 * value + down[i]) / h[i] ** 2 for i in indices}
        for i, j in itertools.combinations(indices, 2):
            four = [f((i, a * h[i]), (j, b * h[j])) * a * b for a in (1, -1) for b in (1, -1)]
            hess[i, j] = hess[j, i] = sum(four) / (4 * h[i] * h[j])
        value_room = 1 + abs(value) + sum(abs(t[i] * g[i]) for i in indices)
        room = [1 + abs(g[i]) + sum(abs(t[j] * hess[i, j]) for j in indices) for i in indices]
        return value, [g[i] for i in indices], value_room, room


def evaluate(make, points, dtype, at=lambda x: x):
    """Log densities and gradients of a site at points, all in one precision."""

    @vipl.gen
    def program(*parameters):
        sample("x", make(*parameters))

    with jax.enable_x64(dtype == np.float64):

        def log_prob(*point):
            return program(*point[1:]).assess({"x": at(point[0])}).log_prob

        def array(part):
            floating = isinstance(part[0] if isinstance(part, list) else part, float)
            return np.asarray(np.asarray(part, np.float32), dtype) if floating else np.asarray(part)

        kinds = {}
        for n, point in enumerate(points):
            arrays = [array(part) for part in point]
            kinds.setdefault(tuple(a.dtype.kind for a in arrays), []).append((n, arrays))
        found = [None] * len(points)
        for kind, group in kinds.items():
            floats = tuple(i for i, k in enumerate(kind) if k == "f")
            stacked = [jnp.stack(xs) for xs in zip(*(arrays for _, arrays in group), strict=True)]
            both = jax.value_and_grad(log_prob, argnums=floats) if floats else lambda *p: (log_prob(*p), ())
            values, gradients = jax.jit(jax.vmap(both))(*stacked)
            assert values.dtype == dtype
            for k, (n, _) in enumerate(group):
                parts = [np.ravel(g[k]).astype(float) for g in gradients]
                found[n] = float(values[k]), np.concatenate([np.zeros(0), *parts])
        return found


def errors(entry):
    """Pairs (point, dtype, errors in units of what the law allows with C = 1): value first, then derivatives."""
    make, formula, points, *at = entry
    truth = [exact(formula, p) for p in points]
    for dtype in (np.float32, np.float64):
        eps = float(np.finfo(dtype).eps)
        for point, (value, g, value_room, room), (got, slopes) in zip(
            points, truth, evaluate(make, points, dtype, *at), strict=True
        ):
            if g is None:
                yield point, dtype, [0.0 if got == value else np.inf]
                continue
            pairs = [(got, value, value_room), *zip(slopes.tolist(), g, room, strict=True)]
            off = [abs(a - b) / (eps * r) if np.isfinite(a) else mp.inf for a, b, r in pairs]
            yield point, dtype, [float(x) for x in off]


def test_every_family_of_numpyro_is_in_the_table_or_left_out_for_a_reason():
    classes = {n for n, c in vars(dist).items() if isinstance(c, type) and issubclass(c, dist.Distribution)}
    named = {name.split(",")[0] for name in FAMILIES}
    assert not named & set(LEFT_OUT)
    assert classes == named | set(LEFT_OUT)


@pytest.mark.parametrize("name", FAMILIES)
def test_log_densities_and_their_derivatives_are_exact_but_for_rounding(name):
    wrong = [
        f"{np.dtype(d).name} {p}: {[round(e, 1) for e in off]}"
        for p, d, off in errors(FAMILIES[name])
        if not max(off) <= C
    ]
    assert not wrong, "errors, in units of eps (1 + |f| + condition):\n" + "\n".join(wrong)


@pytest.mark.parametrize("name", NOT_EXACT)
def test_a_point_that_is_named_as_not_exact_is_not(name):
    """An entry whose density has been mended goes into the table."""
    make, formula, _, *at = FAMILIES[name]
    assert max(max(off) for _, _, off in errors((make, formula, [NOT_EXACT[name][0]], *at))) > C


def test_an_impossible_category_is_not_drawn_by_a_multinomial():
    """Where the uniform number is 0, which it is once in 2^23 draws."""
    p = jnp.array([0.0, 0.25, 0.75], np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.random, "uniform", lambda key, shape, *a, **k: jnp.zeros(shape, np.float32))
        drawn = stabilize(dist.MultinomialProbs(p, 5)).sample(jax.random.key(0), (2,))
    assert drawn.tolist() == [[0, 5, 0]] * 2
