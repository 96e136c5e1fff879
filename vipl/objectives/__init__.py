"""Objectives: programs of a few lines, as a user would write them. Each returns a scalar to be put in an expectation.

    @vipl.expectation
    def objective(phi, y):
        return objectives.elbo(model(), guide(phi), {"y": y})

They are programs: two of them can be added in the user's own expectation.
"""

from vipl.objectives._bounds import beta_elbo as beta_elbo
from vipl.objectives._bounds import chi_upper_bound as chi_upper_bound
from vipl.objectives._bounds import ciwae as ciwae
from vipl.objectives._bounds import diwhvi as diwhvi
from vipl.objectives._bounds import doubly_reparametrized as doubly_reparametrized
from vipl.objectives._bounds import elbo as elbo
from vipl.objectives._bounds import fivo as fivo
from vipl.objectives._bounds import hvi as hvi
from vipl.objectives._bounds import iwelbo as iwelbo
from vipl.objectives._bounds import iwhvi as iwhvi
from vipl.objectives._bounds import miwae as miwae
from vipl.objectives._bounds import piwae as piwae
from vipl.objectives._bounds import renyi as renyi
from vipl.objectives._bounds import sticking_the_landing as sticking_the_landing
from vipl.objectives._bounds import thermodynamic as thermodynamic
from vipl.objectives._chain import elbo_with_chain as elbo_with_chain
from vipl.objectives._closed_form import elbo_with_kl as elbo_with_kl
from vipl.objectives._divergences import f_divergence as f_divergence
from vipl.objectives._divergences import fisher as fisher
from vipl.objectives._divergences import forward_kl as forward_kl
from vipl.objectives._divergences import log_variance as log_variance
from vipl.objectives._divergences import mmd as mmd
from vipl.objectives._divergences import reverse_kl as reverse_kl
from vipl.objectives._divergences import trajectory_balance as trajectory_balance
from vipl.objectives._generators import ChiSquared as ChiSquared
from vipl.objectives._generators import ForwardKL as ForwardKL
from vipl.objectives._generators import Generator as Generator
from vipl.objectives._generators import JensenShannon as JensenShannon
from vipl.objectives._generators import OfLogRatio as OfLogRatio
from vipl.objectives._generators import ReverseKL as ReverseKL
from vipl.objectives._generators import SquaredHellinger as SquaredHellinger
from vipl.objectives._generators import TotalVariation as TotalVariation
from vipl.objectives._wake_sleep import sleep as sleep
from vipl.objectives._wake_sleep import wake_phi as wake_phi
from vipl.objectives._wake_sleep import wake_theta as wake_theta
