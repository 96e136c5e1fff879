"""Addresses, choices, traces, generative functions."""

from vipl.gen._detach import detach as detach
from vipl.gen._estimated import Estimated as Estimated
from vipl.gen._estimator import Alternatives as Alternatives
from vipl.gen._estimator import Draw as Draw
from vipl.gen._estimator import Estimator as Estimator
from vipl.gen._estimator import Law as Law
from vipl.gen._estimator import Points as Points
from vipl.gen._estimator import box as box
from vipl.gen._partly import partly_observed as partly_observed
from vipl.gen._program import GenerativeFunction as GenerativeFunction
from vipl.gen._program import Program as Program
from vipl.gen._program import gen as gen
from vipl.gen._sample import factor as factor
from vipl.gen._sample import sample as sample
from vipl.gen._scaled import scaled as scaled
from vipl.gen._source import Source as Source
from vipl.gen._source import Trace as Trace
from vipl.gen._table import sites as sites
from vipl.gen._without_choice import deterministic as deterministic
from vipl.gen._without_choice import random_key as random_key
