"""Estimated densities: the algorithms of `marginal` and `normalize`, and what resamples particles."""

from vipl.inference._algorithms import Algorithm as Algorithm
from vipl.inference._algorithms import Enumeration as Enumeration
from vipl.inference._algorithms import Importance as Importance
from vipl.inference._algorithms import Proposal as Proposal
from vipl.inference._forward_backward import ForwardBackward as ForwardBackward
from vipl.inference._kalman import Kalman as Kalman
from vipl.inference._particles import Particles as Particles
from vipl.inference._resampling import Dropped as Dropped
from vipl.inference._resampling import Multinomial as Multinomial
from vipl.inference._resampling import MultinomialDropped as MultinomialDropped
from vipl.inference._resampling import Resampling as Resampling
from vipl.inference._resampling import Stratified as Stratified
from vipl.inference._resampling import Systematic as Systematic
from vipl.inference._smc import SMC as SMC
from vipl.inference._smc import Step as Step
