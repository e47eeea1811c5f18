"""Rounds: a federated algorithm put together from its stages.

``rounds.hierarchical``, for devices, edge servers and a cloud, is imported by itself.
"""

from fedprune.rounds.agreement import population as population
from fedprune.rounds.flat import build as build
from fedprune.rounds.stages import initial as initial
from fedprune.rounds.state import STORED as STORED
from fedprune.rounds.state import Edges as Edges
from fedprune.rounds.state import Round as Round
from fedprune.rounds.state import RoundInfo as RoundInfo
from fedprune.rounds.state import State as State
from fedprune.rounds.state import Stratum as Stratum
from fedprune.rounds.state import Tally as Tally
from fedprune.rounds.training import WEIGHTINGS as WEIGHTINGS
