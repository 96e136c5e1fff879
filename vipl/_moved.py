"""Names that stood at the top of `vipl` before 0.2, and where they are now."""

from __future__ import annotations

import sys

_ERRORS = (
    "AddressError ChoiceError ControlFlowError DistributionError EstimatorError ProgramError SupportError ViplError"
)
_ALGORITHMS = "Algorithm Enumeration ForwardBackward Importance Kalman SMC"
_RESAMPLING = "Dropped Multinomial MultinomialDropped Particles Resampling Stratified Systematic"
_POSTERIOR = "vipl.normalize(program, given, vipl.inference"

MOVED = {
    "hold": "vipl.detach",
    "CoupledFlips": "vipl.CoupledAlternative",
    "Support": "vipl.estimators.Points",
    **{name: f"vipl.errors.{name}" for name in _ERRORS.split()},
    **{name: f"vipl.inference.{name}" for name in f"{_ALGORITHMS} {_RESAMPLING}".split()},
    **{name: f"vipl.estimators.{name}" for name in ("Alternatives", "Draw", "Estimator", "Law", "box")},
    "importance": f"{_POSTERIOR}.Importance(num_particles, proposal))",
    "sir": f"{_POSTERIOR}.Importance(num_particles, proposal))",
    "smc": f"{_POSTERIOR}.SMC(num_particles, proposal))",
}


def missing(name: str) -> Exception:
    """What is raised for a name that `vipl` does not have: it tells the new name of an old one.

    `from vipl import name` asks whether the name is there before it reads it, and drops the text of an AttributeError;
    it is Python's importer that asks, and it gets an ImportError.
    """
    if name not in MOVED:
        return AttributeError(f"module 'vipl' has no attribute {name!r}")
    text = f"vipl.{name} is {MOVED[name]} since version 0.2"
    by_importer = sys._getframe(2).f_globals.get("__name__") in ("_frozen_importlib", "importlib._bootstrap")
    return ImportError(text, name="vipl") if by_importer else AttributeError(text)
