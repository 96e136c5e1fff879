"""The zoo: published methods as short user programs, each of which reaches a number that is known.

Each file of this folder is one method, written with the public API alone; nothing is registered. A method has

    PAPER: who published it, and where,
    OBJECTIVE: what is maximized or minimized,
    run(progress): fits and measures; returns an `Outcome`,

and its docstring says where its reference numbers come from. `python -m vipl zoo` lists the methods.
"""

from vipl.zoo._method import Method as Method
from vipl.zoo._method import Number as Number
from vipl.zoo._method import Outcome as Outcome
from vipl.zoo._method import load as load
from vipl.zoo._method import names as names
from vipl.zoo._run import run as run
from vipl.zoo._run import show_list as show_list
