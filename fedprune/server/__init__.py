"""The server: who takes part, and how the global model moves."""

from fedprune.server.aggregation import adam as adam
from fedprune.server.aggregation import average as average
from fedprune.server.aggregation import momentum as momentum
from fedprune.server.aggregation import optimizer as optimizer
from fedprune.server.participation import full as full
from fedprune.server.participation import uniform as uniform
