"""vipl: probabilistic programs for JAX, with programmable variational inference."""

import importlib.metadata as _metadata

from vipl import distributions as distributions
from vipl import interop as interop
from vipl import objectives as objectives
from vipl import testing as testing
from vipl.errors import AddressError as AddressError
from vipl.errors import ChoiceError as ChoiceError
from vipl.errors import ControlFlowError as ControlFlowError
from vipl.errors import DistributionError as DistributionError
from vipl.errors import EstimatorError as EstimatorError
from vipl.errors import ProgramError as ProgramError
from vipl.errors import SupportError as SupportError
from vipl.errors import ViplError as ViplError
from vipl.estimators import ARM as ARM
from vipl.estimators import Biased as Biased
from vipl.estimators import CoupledFlips as CoupledFlips
from vipl.estimators import DisARM as DisARM
from vipl.estimators import Enumerate as Enumerate
from vipl.estimators import GumbelSoftmax as GumbelSoftmax
from vipl.estimators import ImplicitReparam as ImplicitReparam
from vipl.estimators import LeaveOneOut as LeaveOneOut
from vipl.estimators import LocalEnumerate as LocalEnumerate
from vipl.estimators import MeasureValued as MeasureValued
from vipl.estimators import ReinMax as ReinMax
from vipl.estimators import RejectionReparam as RejectionReparam
from vipl.estimators import Relax as Relax
from vipl.estimators import Reparam as Reparam
from vipl.estimators import Score as Score
from vipl.estimators import StraightThrough as StraightThrough
from vipl.expectation import Expectation as Expectation
from vipl.expectation import expectation as expectation
from vipl.fit import Fit as Fit
from vipl.fit import fit as fit
from vipl.gen import Alternatives as Alternatives
from vipl.gen import Draw as Draw
from vipl.gen import Estimator as Estimator
from vipl.gen import GenerativeFunction as GenerativeFunction
from vipl.gen import Law as Law
from vipl.gen import Program as Program
from vipl.gen import Support as Support
from vipl.gen import Trace as Trace
from vipl.gen import box as box
from vipl.gen import factor as factor
from vipl.gen import gen as gen
from vipl.gen import hold as hold
from vipl.gen import sample as sample
from vipl.inference import SMC as SMC
from vipl.inference import Algorithm as Algorithm
from vipl.inference import Dropped as Dropped
from vipl.inference import Enumeration as Enumeration
from vipl.inference import ForwardBackward as ForwardBackward
from vipl.inference import Importance as Importance
from vipl.inference import Kalman as Kalman
from vipl.inference import Multinomial as Multinomial
from vipl.inference import MultinomialDropped as MultinomialDropped
from vipl.inference import Particles as Particles
from vipl.inference import Resampling as Resampling
from vipl.inference import Stratified as Stratified
from vipl.inference import Systematic as Systematic
from vipl.inference import importance as importance
from vipl.inference import marginal as marginal
from vipl.inference import normalize as normalize
from vipl.inference import sir as sir
from vipl.inference import smc as smc
from vipl.interpret.seed import seed as seed

try:
    __version__ = _metadata.version("vipl")
except _metadata.PackageNotFoundError:  # a copy of the files that was not installed
    __version__ = "unknown"
