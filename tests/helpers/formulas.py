"""Log densities of NumPyro's families for numbers of mpmath: the references of `tests.helpers.families`."""

import itertools
from typing import Any

import mpmath

mp: Any = mpmath.mp  # its functions are made when it is imported
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
        [0, 30], method="d",
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


def walk(x, s):
    return normal(x[0], 0, s) + sum(normal(b - a, 0, s) for a, b in itertools.pairwise(x))


def circulant(row):
    n = len(row)
    return mp.matrix([[row[(i - j) % n] for j in range(n)] for i in range(n)])


def euler(x, a, s, times):
    """An Euler-Maruyama path of dx = -a x cos t dt + s dW, from a Normal(0, 2)."""
    steps = zip(x, x[1:], times, times[1:], strict=False)
    return normal(x[0], 0, 2) + sum(
        normal(v, u - (r - t) * a * u * mp.cos(t), s * mp.sqrt(r - t)) for u, v, t, r in steps
    )


def state_space(x, a, s):
    """Two steps of z' = A z + Normal(0, L Lᵀ) from 0, A with the entries `a`, L with the entries `s`."""
    first, second = mp.matrix(x[:2]), mp.matrix(x[2:])
    moved = mp.matrix([[a[0], a[1]], [a[2], a[3]]]) * first
    return mvn(first, [0, 0], tril(s)) + mvn(second, moved, tril(s))


def car(x, m, r, p):
    """A chain of three places: the precision matrix is p (D - r A)."""
    q = p * mp.matrix([[1, -r, 0], [-r, 2, -r], [0, -r, 1]])
    u = mp.matrix([a - b for a, b in zip(x, m, strict=True)])
    return log(mp.det(q)) / 2 - 3 * log(2 * pi) / 2 - (u.T * q * u)[0] / 2


def mixture(weights, parts):
    """Weights need not sum to 1."""
    weights = list(weights)
    return log(sum(w * exp(p) for w, p in zip(weights, parts, strict=True)) / sum(weights))


def log_ndtr(z):
    return log(mp.erfc(-z / mp.sqrt(2)) / 2)


def log_upper(a, x):
    """The upper tail of a Gamma(a, 1)."""
    return log(mp.gammainc(a, x, mp.inf, regularized=True))


def copula(x, m, s, r):
    """Two Normals, coupled by a correlation."""
    z = [(a - b) / c for a, b, c in zip(x, m, s, strict=True)]
    return mvn_cov(z, [0, 0], mp.matrix([[1, r], [r, 1]])) - sum(map(log, s))


def projected3(angles, c):
    """As `projected`, on the sphere."""
    a, b = angles
    x = [mp.cos(a) * mp.sin(b), mp.sin(a) * mp.sin(b), mp.cos(b)]
    t = sum(u * v for u, v in zip(x, c, strict=True))
    along = (1 + t * t) * mp.ncdf(t) / mp.npdf(t) + t
    return -sum(u * u for u in c) / 2 - 3 * log(2 * pi) / 2 + log(along)
