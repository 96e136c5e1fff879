"""The table of `tests.distributions.test_families`: all families of NumPyro, their formulas, points to measure them at.

An entry of FAMILIES: the distribution of its parameters; the formula of the value and the parameters; points, which are
a value and parameters. Floats are differentiated, integers are not. A list is a vector. A fourth part makes a value of
the first numbers of a point: a matrix from its free entries. After a comma, a name says which of several forms it is.
"""

import numpyro.distributions as dist
from mpmath import mp

from tests.helpers.families_of_vectors import UNIT, VECTORS
from tests.helpers.formulas import (
    asymmetric_laplace,
    beta,
    categorical,
    choose,
    cuts,
    exp,
    expit,
    expm1,
    gamma,
    gate,
    lbeta,
    lgamma,
    log,
    log1p,
    mass,
    negative_binomial,
    normal,
    pi,
    poisson,
    polya_gamma,
    positive,
    power_law,
    softplus,
    student,
    von_mises,
    xlog,
)

NUMBERS = {
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
        [(0.3, 1.4, 1.2), (1e-20, 0.01, 1.0), (200.0, 1.0, 1.0), (1e-4, 2.0, 1e4), (0.3, 1.0, 2.0), (2.0, 1e-6, 1.0),
         (5.0, 9.0, 1.0), (0.9, 1e6, 1e6), (1e10, 1e3, 1e-7), (1e4, 1e4, 1.0)],
    ),
    "Chi2": (
        dist.Chi2, lambda x, v: gamma(x, v / 2, mp.mpf(0.5)), [(0.3, 1.4), (1e-20, 0.01), (200.0, 3.0), (1e4, 1e4)],
    ),
    "InverseGamma": (
        dist.InverseGamma, lambda x, a, r: gamma(1 / x, a, r) - 2 * log(x),
        [(0.3, 1.4, 1.2), (1e15, 0.01, 1.0), (0.005, 1.0, 1.0), (1e20, 0.01, 1.0), (1e30, 2.0, 1e25),
         (1e-25, 1.5, 1e-20), (1e-4, 1e4, 1.0)],
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
    "Beta": (
        dist.Beta, beta,
        [(0.3, 1.4, 1.2), (1e-20, 0.01, 2.0), (0.999999, 2.0, 0.1), (0.3, 1.0, 1.0), (0.3, 9.0, 8.0), (0.3, 1e-6, 1e-6),
         (0.5, 1e4, 0.5), (0.999, 1e6, 0.5), (1e-20, 1e-6, 1e5), (0.3, 300.0, 700.0)],
    ),
    "BetaProportion": (
        dist.BetaProportion, lambda x, m, c: beta(x, m * c, (1 - m) * c),
        [(0.3, 0.4, 1.2), (1e-20, 0.01, 2.0), (0.999, 0.999, 1e6), (0.3, 0.3, 1000.0)],
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
        [(0, 0.3, 1.2), (3, 0.3, 1.2), (0, 1e-30, 200.0), (0, 0.9999999, 1.2), (3, 0.9999999, 1.2), (0, 0.0, 1.2),
         (3, 0.0, 1.2), (0, 1.0, 1.2), (3, 1.0, 1.2), (0, 0.6, 200.0)],
    ),
    "HurdlePoisson": (
        dist.HurdlePoisson, lambda x, g, r: gate(x, g, positive(poisson(x, r), -r), False),
        [(0, 0.3, 1.2), (3, 0.3, 1.2), (3, 1e-30, 1.2), (3, 0.9999999, 1.2), (1, 0.3, 1e-6), (3, 0.3, 50.0),
         (0, 1.0, 1.2), (3, 0.0, 1.2)],
    ),
    "HurdleProbs": (
        lambda g, p: dist.HurdleProbs(dist.GeometricProbs(p), g),
        lambda x, g, p: gate(x, g, xlog(x - 1, 1 - p) + log(p), False),
        [(0, 0.3, 0.2), (3, 0.3, 0.2), (3, 0.3, 1e-6), (3, 0.3, 0.99999), (0, 1.0, 0.2), (3, 0.0, 0.2), (3, 1.0, 0.2)],
    ),
    "HurdleLogits": (
        lambda g, r: dist.HurdleLogits(dist.Poisson(r), g),
        lambda x, g, r: gate(x, expit(g), positive(poisson(x, r), -r), False),
        [(0, 0.3, 1.2), (3, 0.3, 1.2), (3, 60.0, 1.2), (0, -60.0, 1.2), (1, 0.3, 1e-6)],
    ),
    "HurdleGamma": (
        dist.HurdleGamma, lambda x, g, a, r: gate(x, g, gamma(x, a, r) if x else 0, False),
        [(0, 0.3, 1.4, 1.2), (3.0, 0.3, 1.4, 1.2), (1e-20, 0.9999999, 0.01, 1.0), (0, 1.0, 1.4, 1.2),
         (3.0, 0.0, 1.4, 1.2)],
    ),
    "HurdleLogNormal": (
        dist.HurdleLogNormal, lambda x, g, m, s: gate(x, g, normal(log(x), m, s) - log(x) if x else 0, False),
        [(0, 0.3, 0.1, 1.2), (3.0, 0.3, 0.1, 1.2), (1e-20, 0.9999999, 0.1, 9.0), (0, 1.0, 0.1, 1.2),
         (3.0, 0.0, 0.1, 1.2)],
    ),
}  # fmt: skip

FAMILIES = NUMBERS | VECTORS

# Points that break the law, with the largest error of each dtype in its units (C = 1), and why.
NOT_EXACT = {
    "LeftTruncatedGamma": (
        (2000.0, 1.4, 1.2, 1900.0), "float32 inf, float64 inf: the mass above the bound underflows to 0"
    ),
    "TwoSidedTruncatedGamma": ((2000.0, 1.4, 1.2, 1900.0, 2100.0), "float32 inf, float64 inf: likewise"),
    "GaussianCopula": (
        ([30.0, 0.8], [0.1, 0.2], [1.2, 0.7], 0.5),
        "float32 1e6, float64 5e14: the distribution functions of its parts are clipped to [tiny, 1 - eps]",
    ),
    "RightCensoredDistribution, Gamma": (
        (50.0, 1.2, 1.4),
        "float32 4e6, float64 2e15: the distribution function of a base that `_censored` does not know is clipped",
    ),
    "MixtureSameFamily": (
        (0.3, [1e-30, 0.0, 1.0], [0.1, -1.0, 40.0], [1.2, 0.7, 0.4]),
        "float32 6e5, float64 3e14: the derivative in a weight that is exactly 0 is 0 (others are exact)",
    ),
}  # fmt: skip

LEFT_OUT = {
    **dict.fromkeys(
        ("Distribution", "ExpandedDistribution", "Independent", "MaskedDistribution", "TransformedDistribution"),
        "a wrapper without a formula of its own",
    ),
    **dict.fromkeys(("ImproperUniform", "Unit"), "no density"),
    "IntervalCensoredDistribution": "cannot stand at a site: its values are pairs, and its draws are numbers",
    "GaussianCopulaBeta": "needs TensorFlow Probability, and derivatives of an incomplete beta function that JAX lacks",
}
