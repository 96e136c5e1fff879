"""Gradient estimators, one file each, and the kit of an estimator's author."""

from vipl.estimators._arm import ARM as ARM
from vipl.estimators._arm import DisARM as DisARM
from vipl.estimators._biased import Biased as Biased
from vipl.estimators._biased import GumbelSoftmax as GumbelSoftmax
from vipl.estimators._biased import ReinMax as ReinMax
from vipl.estimators._biased import StraightThrough as StraightThrough
from vipl.estimators._coupled import CoupledAlternative as CoupledAlternative
from vipl.estimators._enumerate import Enumerate as Enumerate
from vipl.estimators._implicit import ImplicitReparam as ImplicitReparam
from vipl.estimators._implicit import RejectionReparam as RejectionReparam
from vipl.estimators._local import LocalEnumerate as LocalEnumerate
from vipl.estimators._measure_valued import MeasureValued as MeasureValued
from vipl.estimators._relax import Relax as Relax
from vipl.estimators._reparam import Reparam as Reparam
from vipl.estimators._score import LeaveOneOut as LeaveOneOut
from vipl.estimators._score import Score as Score
from vipl.gen import Alternatives as Alternatives
from vipl.gen import Draw as Draw
from vipl.gen import Estimator as Estimator
from vipl.gen import Law as Law
from vipl.gen import Points as Points
from vipl.gen import box as box
