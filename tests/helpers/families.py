"""Families of NumPyro, each with its log density written down anew, and the points at which the two are compared.

A row is `name: (make, exact, points)`: `make(*parameters)` is the distribution; `exact(x, *parameters)` its log density
in mpmath's numbers; a point is `(x, *parameters)`, of numbers and (nested) lists of numbers. Points are ordinary ones
and extreme ones: tails, edges, probabilities that round to 0 or 1, small and large parameters.
"""

from __future__ import annotations

import jax.numpy as jnp
import mpmath as mp
import numpyro.distributions as dist

log, exp, lgamma = mp.log, mp.exp, mp.loggamma


def softplus(x):
    return mp.log1p(exp(x)) if x < 0 else x + mp.log1p(exp(-x))


def log_beta(a, b):
    return lgamma(a) + lgamma(b) - lgamma(a + b)


def log_choose(n, k):
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)


def normal(x, m, s):
    return -(((x - m) / s) ** 2) / 2 - log(s) - log(2 * mp.pi) / 2


def normal_mass(low, high):
    """Φ(high) - Φ(low), from the upper tail."""
    return (mp.erfc(low / mp.sqrt(2)) - mp.erfc(high / mp.sqrt(2))) / 2


def student(x, v, m, s):
    z = (x - m) / s
    return lgamma((v + 1) / 2) - lgamma(v / 2) - log(v * mp.pi) / 2 - log(s) - (v + 1) / 2 * mp.log1p(z * z / v)


def gamma(x, a, b):
    return a * log(b) - lgamma(a) + (a - 1) * log(x) - b * x


def poisson(k, r):
    return k * log(r) - r - lgamma(k + 1)


def negative_binomial(k, n, logits):
    """k failures, each of probability σ(logits)."""
    return log_choose(k + n - 1, k) - k * softplus(-logits) - n * softplus(logits)


def dirichlet(x, a):
    return lgamma(sum(a)) + sum((i - 1) * log(y) - lgamma(i) for y, i in zip(x, a, strict=True))


def multinomial(x, logits):
    total = log(sum(map(exp, logits)))
    return lgamma(sum(x) + 1) + sum(k * (i - total) - lgamma(k + 1) for k, i in zip(x, logits, strict=True))


def times_log(x, p):
    return 0 if x == 0 else x * log(p)


def gaussian(x, m, cov):
    d, n = mp.matrix([a - b for a, b in zip(x, m, strict=True)]), len(x)
    return -((d.T * mp.lu_solve(cov, d))[0]) / 2 - log(mp.det(cov)) / 2 - n * log(2 * mp.pi) / 2


def square(tril):
    m = mp.matrix(tril)
    return m * m.T


def multivariate_student(x, v, m, tril):
    cov, n = square(tril), len(x)
    d = mp.matrix([a - b for a, b in zip(x, m, strict=True)])
    far = (d.T * mp.lu_solve(cov, d))[0]
    normalizer = lgamma((v + n) / 2) - lgamma(v / 2) - n * log(v * mp.pi) / 2 - log(mp.det(cov)) / 2
    return normalizer - (v + n) / 2 * mp.log1p(far / v)


def low_rank(x, m, factor, diagonal):
    return gaussian(x, m, square(factor) + mp.diag(diagonal))


def asymmetric_laplace(x, m, s, k):
    z = (x - m) / s
    return log(1 / s / (k + 1 / k)) - (z * k if z > 0 else -z / k)


def asymmetric_laplace_quantile(x, m, s, q):
    k = mp.sqrt(q / (1 - q))
    return asymmetric_laplace(x, m, s * k / q, k)


def ordered_logistic(k, eta, cuts):
    at_most = [mp.mpf(0), *(1 / (1 + exp(eta - c)) for c in cuts), mp.mpf(1)]
    above = [mp.mpf(1), *(1 / (1 + exp(c - eta)) for c in cuts), mp.mpf(0)]
    k = int(k)
    return log(at_most[k + 1] - at_most[k] if at_most[k + 1] < 0.5 else above[k] - above[k + 1])


def dagum(x, p, a, b):
    z = a * log(x / b)
    return log(a * p / x) + p * z - (p + 1) * softplus(z)


def power_law(x, alpha, low, high):
    mass = log(high / low) if alpha == -1 else (high ** (1 + alpha) - low ** (1 + alpha)) / (1 + alpha)
    return alpha * log(x) - log(mass)


def beta_negative_binomial(k, a, b, n):
    return lgamma(n + k) - lgamma(n) - lgamma(k + 1) + log_beta(a + k, b + n) - log_beta(a, b)


def inflated(k, gate, base):
    return log(gate + (1 - gate) * exp(base)) if k == 0 else mp.log1p(-gate) + base


def hurdle_poisson(k, gate, r):
    return log(gate) if k == 0 else mp.log1p(-gate) + poisson(k, r) - log(-mp.expm1(-r))


def relaxed(x, t, a):
    """Of the logit of x, a logistic number of location a / t and scale 1 / t."""
    y = a - t * log(x / (1 - x))
    return log(t) + y - 2 * softplus(y) - log(x) - mp.log1p(-x)


def wishart(x, v, tril):
    x, s, n = (mp.matrix(x) + mp.matrix(x).T) / 2, square(tril), len(x)
    inside = mp.inverse(s) * x
    trace = sum(inside[i, i] for i in range(n))
    normalizer = v * n / 2 * log(2) + v / 2 * log(mp.det(s)) + n * (n - 1) / 4 * log(mp.pi)
    normalizer += sum(lgamma((v - i) / 2) for i in range(n))
    return (v - n - 1) / 2 * log(mp.det(x)) - trace / 2 - normalizer


def lkj_cholesky(x, eta):
    """Of the factor of a correlation matrix of size 2: (1 - r²)^(η - 1) / B(η, η) / 2^(2 η - 1)."""
    return (2 * eta - 2) * log(x[1][1]) - (2 * eta - 1) * log(2) - log_beta(eta, eta)


UNIT = [(0.3, 0.5, 2.0), (0.98, 3.0, 0.2), (1e-6, 0.05, 4.0), (0.5, 40.0, 60.0)]
REAL = [(0.3, 0.1, 1.5), (-40.0, 2.0, 0.7), (1e4, -3.0, 2.0), (0.2, 0.2001, 1e-3)]
POSITIVE = [(0.3, 1.4, 2.0), (1e-5, 0.05, 0.3), (30.0, 4.0, 0.9), (2.0, 50.0, 20.0)]
TRIL, FAR = [[1.3, 0.0], [-0.4, 0.8]], [[30.0, 0.0], [5.0, 0.01]]
LOGITS = [0.3, -1.2, 5.0, -30.0, 0.0, 80.0]

FAMILIES = {
    "Normal": (dist.Normal, normal, REAL),
    "LogNormal": (dist.LogNormal, lambda x, m, s: normal(log(x), m, s) - log(x), [
        (0.3, 0.1, 1.5), (1e-30, 2.0, 4.0), (1e20, -3.0, 2.0)]),
    "Laplace": (dist.Laplace, lambda x, m, s: -abs(x - m) / s - log(2 * s), REAL),
    "Logistic": (dist.Logistic, lambda x, m, s: -abs(x - m) / s - 2 * softplus(-abs(x - m) / s) - log(s), REAL),
    "Gumbel": (dist.Gumbel, lambda x, m, s: -(x - m) / s - exp(-(x - m) / s) - log(s), [REAL[0], (30.0, 2.0, 0.7)]),
    "Cauchy": (dist.Cauchy, lambda x, m, s: -log(mp.pi * s) - mp.log1p(((x - m) / s) ** 2), REAL),
    "SoftLaplace": (dist.SoftLaplace, lambda x, m, s: (
        log(2 / mp.pi / s) - abs(x - m) / s - mp.log1p(exp(-2 * abs(x - m) / s))), REAL),
    "AsymmetricLaplace": (dist.AsymmetricLaplace, asymmetric_laplace, [
        (0.3, 0.1, 1.5, 2.0), (-40.0, 2.0, 0.7, 0.1), (1e4, -3.0, 2.0, 9.0)]),
    "AsymmetricLaplaceQuantile": (dist.AsymmetricLaplaceQuantile, asymmetric_laplace_quantile, [
        (0.3, 0.1, 1.5, 0.3), (-40.0, 2.0, 0.7, 0.9)]),
    "StudentT": (dist.StudentT, student, [
        (0.3, 4.0, 0.1, 1.5), (1e20, 1.5, 0.0, 2.0), (0.4, 0.01, 0.1, 1.5), (-7.0, 30.0, 2.0, 0.7)]),
    "HalfNormal": (dist.HalfNormal, lambda x, s: normal(x, 0, s) + log(2), [(0.3, 1.5), (40.0, 0.7), (1e-8, 2.0)]),
    "HalfCauchy": (dist.HalfCauchy, lambda x, s: log(2 / mp.pi / s) - mp.log1p((x / s) ** 2), [
        (0.3, 1.5), (1e6, 0.7), (1e-8, 2.0)]),
    "Exponential": (dist.Exponential, lambda x, r: log(r) - r * x, [(0.3, 1.5), (40.0, 0.7), (1e-8, 200.0)]),
    "Gamma": (dist.Gamma, gamma, POSITIVE),
    "InverseGamma": (dist.InverseGamma, lambda x, a, b: gamma(1 / x, a, b) - 2 * log(x), POSITIVE),
    "Chi2": (dist.Chi2, lambda x, v: gamma(x, v / 2, mp.mpf(1) / 2), [(0.3, 1.5), (40.0, 7.0), (1e-8, 0.2)]),
    "Weibull": (dist.Weibull, lambda x, s, k: log(k / s) + (k - 1) * log(x / s) - (x / s) ** k, [
        (0.3, 1.4, 2.0), (1e-5, 0.05, 0.3), (3.0, 4.0, 9.0)]),
    "Pareto": (dist.Pareto, lambda x, s, a: log(a) + a * log(s) - (a + 1) * log(x), [
        (2.3, 1.4, 2.0), (1e5, 0.05, 0.3), (30.0, 29.0, 50.0)]),
    "Levy": (dist.Levy, lambda x, m, c: log(c / 2 / mp.pi) / 2 - c / 2 / (x - m) - 1.5 * log(x - m), [
        (2.3, 1.4, 2.0), (1e5, 0.05, 0.3)]),
    "Gompertz": (dist.Gompertz, lambda x, c, r: log(c * r) + r * x - c * mp.expm1(r * x), [
        (0.3, 1.4, 2.0), (1e-5, 0.05, 0.3), (3.0, 0.01, 1.5)]),
    "Dagum": (dist.Dagum, dagum, [(0.3, 1.4, 2.0, 0.7), (1e-5, 0.5, 0.3, 4.0), (1e4, 2.0, 3.0, 0.1)]),
    "Beta": (dist.Beta, lambda x, a, b: (a - 1) * log(x) + (b - 1) * mp.log1p(-x) - log_beta(a, b), UNIT),
    "BetaProportion": (dist.BetaProportion, lambda x, m, k: (
        (m * k - 1) * log(x) + ((1 - m) * k - 1) * mp.log1p(-x) - log_beta(m * k, (1 - m) * k)), [
        (0.3, 0.5, 2.0), (0.98, 0.9, 0.2), (1e-6, 0.05, 4.0)]),
    "Kumaraswamy": (dist.Kumaraswamy, lambda x, a, b: (
        log(a * b) + (a - 1) * log(x) + (b - 1) * log(-mp.expm1(a * log(x)))), UNIT),
    "Uniform": (dist.Uniform, lambda x, a, b: -log(b - a), [(0.3, 0.1, 1.5), (-2.0, -1e4, 1e5)]),
    "LogUniform": (dist.LogUniform, lambda x, a, b: -log(x) - log(log(b / a)), [(0.3, 0.1, 1.5), (1e-8, 1e-9, 1e5)]),
    "VonMises": (dist.VonMises, lambda x, m, k: (
        k * (mp.cos(x - m) - 1) - log(2 * mp.pi) - log(mp.besseli(0, k) * exp(-k))), [
        (0.3, 0.1, 1.5), (-3.0, 3.0, 1e-3), (0.2, 0.25, 300.0)]),
    "LowerTruncatedPowerLaw": (dist.LowerTruncatedPowerLaw, lambda x, a, low: (
        a * log(x) + log(-1 - a) - (a + 1) * log(low)), [(2.3, -1.4, 2.0), (1e5, -3.0, 0.3), (1e3, -1.01, 0.1)]),
    "DoublyTruncatedPowerLaw": (dist.DoublyTruncatedPowerLaw, power_law, [
        (2.3, -1.4, 2.0, 9.0), (30.0, 2.0, 0.3, 50.0)]),
    "RelaxedBernoulliLogits": (dist.RelaxedBernoulliLogits, relaxed, [(0.3, 0.5, 0.2), (1e-6, 2.0, -8.0)]),
    "TruncatedNormal": (
        lambda m, s, a, b: dist.TruncatedNormal(m, s, low=a, high=b),
        lambda x, m, s, a, b: normal(x, m, s) - log(normal_mass((a - m) / s, (b - m) / s)),
        [(0.3, 0.1, 1.5, -1.0, 2.0), (12.3, 0.1, 1.5, 12.0, 14.0), (60.1, 0.0, 1.0, 60.0, 61.0)]),
    "LeftTruncatedNormal": (
        lambda m, s, a: dist.TruncatedNormal(m, s, low=a),
        lambda x, m, s, a: normal(x, m, s) - log(normal_mass((a - m) / s, mp.inf)),
        [(0.3, 0.1, 1.5, -1.0), (12.3, 0.1, 1.5, 12.0), (3.0, 9.0, 0.5, 0.0)]),
    "RightTruncatedNormal": (
        lambda m, s, b: dist.TruncatedNormal(m, s, high=b),
        lambda x, m, s, b: normal(x, m, s) - log(normal_mass((m - b) / s, mp.inf)),
        [(0.3, 0.1, 1.5, 1.0), (-12.3, 0.1, 1.5, -12.0)]),
    "BernoulliLogits": (dist.BernoulliLogits, lambda k, a: -softplus((1 - 2 * k) * a), [
        (k, a) for k in (0, 1) for a in LOGITS]),
    "BernoulliProbs": (dist.BernoulliProbs, lambda k, p: times_log(k, p) + (0 if k else mp.log1p(-p)), [
        (k, p) for k in (0, 1) for p in (0.3, 1e-12, 0.99999)]),
    "BinomialLogits": (lambda a: dist.BinomialLogits(a, 7), lambda k, a: (
        log_choose(7, k) - k * softplus(-a) - (7 - k) * softplus(a)), [(k, a) for k in (0, 3, 7) for a in LOGITS]),
    "BinomialProbs": (lambda p: dist.BinomialProbs(p, 7), lambda k, p: (
        log_choose(7, k) + times_log(k, p) + times_log(7 - k, 1 - p)), [
        (k, p) for k in (0, 3, 7) for p in (0.3, 1e-12, 0.99999)]),
    "GeometricLogits": (dist.GeometricLogits, lambda k, a: -softplus(-a) - k * softplus(a), [
        (k, a) for k in (0, 3, 40) for a in LOGITS]),
    "GeometricProbs": (dist.GeometricProbs, lambda k, p: log(p) + k * mp.log1p(-p), [
        (k, p) for k in (0, 3, 40) for p in (0.3, 1e-12, 0.99999)]),
    "Poisson": (dist.Poisson, poisson, [(0, 1e-9), (3, 2.5), (90, 70.0), (0, 60.0), (4, 1e-4)]),
    "NegativeBinomialLogits": (dist.NegativeBinomialLogits, negative_binomial, [
        (3, 2.5, 0.3), (0, 0.1, -20.0), (40, 30.0, 1.0), (2, 1.5, 40.0)]),
    "NegativeBinomialProbs": (dist.NegativeBinomialProbs, lambda k, n, p: (
        log_choose(k + n - 1, k) + times_log(k, p) + n * mp.log1p(-p)), [
        (3, 2.5, 0.3), (0, 0.1, 1e-12), (40, 30.0, 0.7), (2, 1.5, 0.99999)]),
    "NegativeBinomial2": (dist.NegativeBinomial2, lambda k, m, c: negative_binomial(k, c, log(m / c)), [
        (3, 2.5, 0.3), (0, 0.1, 20.0), (40, 30.0, 0.7)]),
    "GammaPoisson": (dist.GammaPoisson, lambda k, a, b: negative_binomial(k, a, -log(b)), [
        (3, 2.5, 0.3), (0, 0.1, 20.0), (40, 30.0, 0.7)]),
    "BetaBinomial": (lambda a, b: dist.BetaBinomial(a, b, 7), lambda k, a, b: (
        log_choose(7, k) + log_beta(k + a, 7 - k + b) - log_beta(a, b)), [
        (3, 2.5, 0.3), (0, 0.1, 20.0), (7, 30.0, 0.7)]),
    "BetaNegativeBinomial": (dist.BetaNegativeBinomial, beta_negative_binomial, [
        (3, 2.5, 0.3, 4.0), (0, 0.1, 20.0, 0.5)]),
    "ZeroInflatedPoisson": (dist.ZeroInflatedPoisson, lambda k, g, r: inflated(k, g, poisson(k, r)), [
        (0, 0.3, 2.0), (3, 0.3, 2.0), (0, 1e-9, 60.0), (0, 0.99999, 2.0)]),
    "ZeroInflatedProbs": (lambda g, p: dist.ZeroInflatedDistribution(dist.Geometric(p), gate=g), lambda k, g, p: (
        inflated(k, g, log(p) + k * mp.log1p(-p))), [(0, 0.3, 0.2), (3, 0.3, 0.2), (0, 1e-9, 1e-3)]),
    "ZeroInflatedLogits": (
        lambda a, p: dist.ZeroInflatedDistribution(dist.Geometric(p), gate_logits=a),
        lambda k, a, p: inflated(k, 1 / (1 + exp(-a)), log(p) + k * mp.log1p(-p)),
        [(0, 0.3, 0.2), (3, 0.3, 0.2), (0, -20.0, 1e-3), (3, 15.0, 0.2)]),
    "HurdlePoisson": (dist.HurdlePoisson, hurdle_poisson, [
        (0, 0.3, 2.0), (3, 0.3, 2.0), (1, 0.3, 1e-2), (2, 0.99999, 40.0)]),
    "HurdleGamma": (dist.HurdleGamma, lambda x, g, a, b: mp.log1p(-g) + gamma(x, a, b), [
        (0.3, 0.3, 1.4, 2.0), (30.0, 0.99, 4.0, 0.9)]),
    "HurdleLogNormal": (dist.HurdleLogNormal, lambda x, g, m, s: mp.log1p(-g) + normal(log(x), m, s) - log(x), [
        (0.3, 0.3, 1.4, 2.0), (30.0, 0.99, 4.0, 0.9)]),
    "OrderedLogistic": (dist.OrderedLogistic, ordered_logistic, [
        (1, 0.3, [-1.0, 2.0]), (0, 25.0, [-1.0, 2.0]), (2, -25.0, [-1.0, 2.0]), (1, 20.0, [-1.0, 2.0]),
        (1, -20.0, [0.0, 0.5])]),
    "CategoricalLogits": (dist.CategoricalLogits, lambda k, a: a[int(k)] - log(sum(map(exp, a))), [
        (0, [0.3, 1.0, -2.0]), (2, [50.0, 1.0, -60.0]), (1, [0.0, 0.0, 0.0])]),
    "CategoricalProbs": (dist.CategoricalProbs, lambda k, p: log(p[int(k)]), [
        (0, [0.25, 0.5, 0.25]), (2, [0.5, 0.499999, 1e-6])]),
    "MultinomialLogits": (lambda a: dist.MultinomialLogits(a, 6), multinomial, [
        ([1, 2, 3], [0.3, 1.0, -2.0]), ([6, 0, 0], [50.0, 1.0, -60.0])]),
    "MultinomialProbs": (lambda p: dist.MultinomialProbs(p, 6), lambda x, p: (
        lgamma(7) + sum(times_log(k, q) - lgamma(k + 1) for k, q in zip(x, p, strict=True))), [
        ([1, 2, 3], [0.25, 0.5, 0.25]), ([6, 0, 0], [0.5, 0.5, 1e-12])]),
    "Dirichlet": (dist.Dirichlet, dirichlet, [
        ([0.25, 0.5, 0.25], [0.3, 4.0, 1.0]), ([0.5, 0.4990234375, 0.0009765625], [30.0, 4.0, 0.01])]),
    "DirichletMultinomial": (lambda a: dist.DirichletMultinomial(a, 6), lambda x, a: (
        log_choose(6, 0) + lgamma(7) + lgamma(sum(a)) - lgamma(6 + sum(a))
        + sum(lgamma(k + i) - lgamma(i) - lgamma(k + 1) for k, i in zip(x, a, strict=True))), [
        ([1, 2, 3], [0.3, 4.0, 1.0]), ([6, 0, 0], [30.0, 4.0, 0.01])]),
    "MultivariateNormal": (
        lambda m, t: dist.MultivariateNormal(m, scale_tril=t), lambda x, m, t: gaussian(x, m, square(t)),
        [([0.3, -2.0], [0.1, 0.2], TRIL), ([30.0, 1.0], [0.0, 0.2], FAR)]),
    "MultivariateStudentT": (dist.MultivariateStudentT, multivariate_student, [
        ([0.3, -2.0], 4.0, [0.1, 0.2], TRIL), ([30.0, 1.0], 0.7, [0.0, 0.2], FAR)]),
    "LowRankMultivariateNormal": (dist.LowRankMultivariateNormal, low_rank, [
        ([0.3, -2.0], [0.1, 0.2], [[1.3], [-0.4]], [0.5, 0.8])]),
    "MatrixNormal": (
        lambda m, a, b: dist.MatrixNormal(m, a, b),
        lambda x, m, a, b: gaussian(
            [v for row in x for v in row], [v for row in m for v in row],
            mp.matrix([[square(a)[i, k] * square(b)[j, h] for k in range(2) for h in range(2)]
                       for i in range(2) for j in range(2)])),
        [([[0.3, -2.0], [1.0, 0.5]], [[0.1, 0.2], [0.3, 0.4]], TRIL, [[0.7, 0.0], [0.2, 1.1]])]),
    "Wishart": (lambda v, t: dist.Wishart(v, scale_tril=t), wishart, [([[2.3, 0.4], [0.4, 1.1]], 4.5, TRIL)]),
    "LKJCholesky": (lambda c: dist.LKJCholesky(2, c), lkj_cholesky, [
        ([[1.0, 0.0], [0.0, 1.0]], 1.5), ([[1.0, 0.0], [0.0, 1.0]], 0.3)]),
}  # fmt: skip

LEFT_OUT = {
    **dict.fromkeys(
        """Distribution ExpandedDistribution FoldedDistribution Independent MaskedDistribution TransformedDistribution
        MixtureGeneral MixtureSameFamily IntervalCensoredDistribution LeftCensoredDistribution RightCensoredDistribution
        GaussianCopula GaussianCopulaBeta SineSkewed HurdleLogits HurdleProbs""".split(),
        "made of other distributions, whose densities stand here",
    ),
    **dict.fromkeys("Delta Unit ImproperUniform DiscreteUniform".split(), "no number is computed"),
    **dict.fromkeys(
        "EulerMaruyama GaussianRandomWalk GaussianStateSpace CAR CirculantNormal ZeroSumNormal".split(),
        "densities of Normals, put together",
    ),
    **dict.fromkeys(
        "LeftTruncatedGamma RightTruncatedGamma TwoSidedTruncatedGamma".split(),
        "the mass is JAX's incomplete Gamma function",
    ),
    **dict.fromkeys(
        "InverseWishart InverseWishartCholesky WishartCholesky LKJ".split(), "transformations of families of the table"
    ),
    **dict.fromkeys(
        "ProjectedNormal SineBivariateVonMises TruncatedPolyaGamma".split(), "series, which NumPyro cuts off"
    ),
}
"""The classes of NumPyro that have no row, and why."""

TRUNCATED = {"TwoSidedTruncatedDistribution", "LeftTruncatedDistribution", "RightTruncatedDistribution"}
"""Classes that stand in the table by the name of a function that makes them."""


def array(x, dtype):
    """A number or a nested list as an array: integers stay such."""
    x = jnp.asarray(x)
    return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x
