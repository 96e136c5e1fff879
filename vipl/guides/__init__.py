"""Guides: variational families made for a model, which are programs like any other."""

from vipl.guides._amortized import Amortized as Amortized
from vipl.guides._boosted import Boosted as Boosted
from vipl.guides._combine import BlockDiagonal as BlockDiagonal
from vipl.guides._combine import combine as combine
from vipl.guides._delta import Delta as Delta
from vipl.guides._flow import Flow as Flow
from vipl.guides._guide import Guide as Guide
from vipl.guides._guide import ModelGuide as ModelGuide
from vipl.guides._joint import FullRank as FullRank
from vipl.guides._joint import Laplace as Laplace
from vipl.guides._joint import LowRank as LowRank
from vipl.guides._joint import Mixture as Mixture
from vipl.guides._markov import Markov as Markov
from vipl.guides._mean_field import MeanField as MeanField
from vipl.guides._pathfinder import Pathfinder as Pathfinder
from vipl.guides._semi_implicit import SemiImplicit as SemiImplicit
from vipl.guides._structured import Structured as Structured
