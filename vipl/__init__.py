"""vipl: probabilistic programs for JAX, with programmable variational inference."""

import importlib.metadata as _metadata
import typing as _typing

from vipl import diagnostics, distributions, errors, estimators, guides, inference, interop, objectives, testing
from vipl.estimators import (
    ARM,
    Biased,
    CoupledAlternative,
    DisARM,
    Enumerate,
    GumbelSoftmax,
    ImplicitReparam,
    LeaveOneOut,
    LocalEnumerate,
    MeasureValued,
    ReinMax,
    RejectionReparam,
    Relax,
    Reparam,
    Score,
    StraightThrough,
)
from vipl.expectation import Expectation, expectation
from vipl.fit import Fit, fit
from vipl.gen import (
    GenerativeFunction,
    Program,
    Source,
    Trace,
    detach,
    deterministic,
    factor,
    gen,
    partly_observed,
    random_key,
    sample,
    scaled,
    sites,
)
from vipl.inference._marginal import marginal, normalize
from vipl.interpret.seed import seed
from vipl.posterior import Posterior, infer, load, predict

__all__ = [
    "ARM",
    "Biased",
    "CoupledAlternative",
    "DisARM",
    "Enumerate",
    "Expectation",
    "Fit",
    "GenerativeFunction",
    "GumbelSoftmax",
    "ImplicitReparam",
    "LeaveOneOut",
    "LocalEnumerate",
    "MeasureValued",
    "Posterior",
    "Program",
    "ReinMax",
    "RejectionReparam",
    "Relax",
    "Reparam",
    "Score",
    "Source",
    "StraightThrough",
    "Trace",
    "detach",
    "diagnostics",
    "deterministic",
    "distributions",
    "errors",
    "estimators",
    "expectation",
    "factor",
    "fit",
    "gen",
    "guides",
    "infer",
    "inference",
    "interop",
    "load",
    "marginal",
    "normalize",
    "objectives",
    "partly_observed",
    "predict",
    "random_key",
    "sample",
    "scaled",
    "sites",
    "seed",
    "testing",
]

try:
    __version__ = _metadata.version("vipl")
except _metadata.PackageNotFoundError:  # a copy of the files that was not installed
    __version__ = "unknown"


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])


if not _typing.TYPE_CHECKING:  # a type checker would take every name for one that exists

    def __getattr__(name: str) -> _typing.Any:
        from vipl._moved import missing

        raise missing(name)
