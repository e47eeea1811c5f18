"""Rounds: a federated algorithm put together from its stages."""

from fedprune.round.agreement import population as population
from fedprune.round.flat import build as build
from fedprune.round.stages import initial as initial
from fedprune.round.state import STORED as STORED
from fedprune.round.state import Edges as Edges
from fedprune.round.state import Round as Round
from fedprune.round.state import RoundInfo as RoundInfo
from fedprune.round.state import State as State
from fedprune.round.state import Stratum as Stratum
from fedprune.round.state import Tally as Tally
from fedprune.round.training import WEIGHTINGS as WEIGHTINGS
