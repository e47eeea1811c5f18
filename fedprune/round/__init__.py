"""Rounds: a federated algorithm put together from its stages."""

from fedprune.round.flat import build as build
from fedprune.round.parts import STORED as STORED
from fedprune.round.parts import WEIGHTINGS as WEIGHTINGS
from fedprune.round.parts import Edges as Edges
from fedprune.round.parts import Round as Round
from fedprune.round.parts import RoundInfo as RoundInfo
from fedprune.round.parts import State as State
from fedprune.round.parts import Stratum as Stratum
from fedprune.round.parts import Tally as Tally
from fedprune.round.parts import initial as initial
from fedprune.round.parts import population as population
