"""The federation of bearings: clients are load × machine, on the CWRU recordings."""

from __future__ import annotations

from fedprune.config import Config

LAST = 5
"""Rounds over which the final accuracy is averaged."""


def setting(config: Config) -> None:
    """Data, network, learning rate and length of the experiments on bearings."""
    config.data.name, config.data.partition = "bearing", "natural"
    config.model.name, own = "signal", config.model.signal
    own.filters, own.kernel = (16, 32, 64), 5
    config.local.lr = 0.05
    config.run.rounds, config.run.seeds = 60, 5
