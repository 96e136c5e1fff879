"""From a model and its data to a posterior: `infer`, and what the posterior can be asked."""

from vipl.posterior._draws import predict as predict
from vipl.posterior._evidence import Evidence as Evidence
from vipl.posterior._files import Report as Report
from vipl.posterior._improved import Improved as Improved
from vipl.posterior._infer import infer as infer
from vipl.posterior._posterior import Posterior as Posterior
from vipl.posterior._posterior import load as load
