"""What NumPyro calls the distributions of other libraries, for messages."""

from __future__ import annotations

import numpyro.distributions as dist

_LIBRARIES = {
    "scipy": "SciPy",
    "distrax": "distrax",
    "tensorflow_probability": "TensorFlow Probability",
    "torch": "PyTorch",
    "pyro": "Pyro",
    "pymc": "PyMC",
    "preliz": "PreliZ",
    "flowjax": "FlowJAX",
    "genjax": "GenJAX",
    "oryx": "Oryx",
    "coix": "coix",
}

_PAIRS = """norm:Normal bernoulli:Bernoulli beta:Beta binom:Binomial betabinom:BetaBinomial cauchy:Cauchy
    chi2:Chi2 dirichlet:Dirichlet expon:Exponential gamma:Gamma geom:Geometric gumbel_r:Gumbel halfcauchy:HalfCauchy
    halfnorm:HalfNormal invgamma:InverseGamma laplace:Laplace logistic:Logistic lognorm:LogNormal
    multinomial:Multinomial multivariate_normal:MultivariateNormal multivariate_t:MultivariateStudentT
    nbinom:NegativeBinomial2 pareto:Pareto poisson:Poisson randint:DiscreteUniform t:StudentT truncnorm:TruncatedNormal
    uniform:Uniform vonmises:VonMises weibull_min:Weibull wishart:Wishart Chi:Chi2
    MultivariateNormalTriL:MultivariateNormal MultivariateNormalFullCovariance:MultivariateNormal
    MultivariateNormalLinearOperator:MultivariateNormal MultivariateStudentTLinearOperator:MultivariateStudentT
    Mixture:MixtureGeneral Deterministic:Delta Transformed:TransformedDistribution Masked:MaskedDistribution"""
_NAMES: dict[str, str] = {theirs: ours for theirs, ours in (pair.split(":") for pair in _PAIRS.split())}

_FORMS = {
    "MultivariateNormalDiag": "Normal(loc, scale).to_event(1)",
    "Independent": "Normal(loc, scale).to_event(1)",
    "Sample": "Normal(loc, scale).expand([n])",
    "OneHotCategorical": "Categorical(logits=logits)",
    "Normal": "Normal(loc, scale)",
    "Bernoulli": "Bernoulli(logits=logits)",
    "Categorical": "Categorical(logits=logits)",
}


def library_of(source: object) -> str | None:
    """The library that a distribution belongs to, as its authors write it; None if it is none that is known."""
    root = type(source).__module__.split(".")[0]
    return _LIBRARIES.get(root)


def equivalent(source: object) -> tuple[str, str]:
    """Another library's name for a distribution, and how NumPyro writes it."""
    of_scipy = getattr(source, "dist", source) if type(source).__module__.startswith("scipy") else None
    name = getattr(of_scipy, "name", None) or type(source).__name__.removesuffix("_frozen").removesuffix("_gen")
    theirs = _NAMES.get(name, name)
    form = _FORMS.get(theirs) or (f"{theirs}(...)" if hasattr(dist, theirs) else "Normal(loc, scale)")
    return name, f"numpyro.distributions.{form}"
