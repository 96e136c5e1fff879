"""Estimated densities: `marginal`, `normalize`, and the algorithms that estimate them."""

from vipl.inference._algorithms import Algorithm as Algorithm
from vipl.inference._algorithms import Enumeration as Enumeration
from vipl.inference._algorithms import Importance as Importance
from vipl.inference._marginal import Marginal as Marginal
from vipl.inference._marginal import Normalized as Normalized
from vipl.inference._marginal import importance as importance
from vipl.inference._marginal import marginal as marginal
from vipl.inference._marginal import normalize as normalize
from vipl.inference._marginal import sir as sir
from vipl.inference._particles import Particles as Particles
