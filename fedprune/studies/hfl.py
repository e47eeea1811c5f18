"""P2's hierarchical federation in the sizes in which the experiments run it."""

from __future__ import annotations

from fedprune.config import Config, ConfigError

DATASETS = {
    "full": "fashion_mnist", "mnist": "mnist", "cifar10": "cifar10", "paper": "fashion_mnist"
}  # fmt: skip
"""variant -> set"""
LITERAL = 0.001
"""Table II's learning rate"""


def setting(config: Config, variant: str) -> None:
    """P2's federation, network, masks and training, in three sizes.

    Raises:
      ConfigError: an unknown variant.
    """
    config.data.clients, config.edges.servers, config.cohort.weighting = 25, 5, "plain"
    own = config.model.cnn
    own.filters, own.kernel, own.hidden = (32, 64), 3, (8,)
    config.local.optimizer, config.local.lr, config.local.clip = "sgd", 0.5, 0.5
    config.pruning.scope, config.pruning.layers, config.pruning.rewind = "own", "dense", True
    config.pruning.importance, config.pruning.warm_up = "change", 1
    config.uplink.link, config.uplink.division = "ideal", "holders"
    config.run.evaluate = "dense"
    if variant == "fast":
        config.edges.rounds, config.local.steps, config.local.batch = 4, 5, 16
        config.run.rounds, config.run.save_every = 8, 2
    elif variant in DATASETS:
        config.data.name = DATASETS[variant]
        config.edges.rounds, config.local.steps, config.local.batch = 5, 10, 32
        config.run.rounds, config.run.save_every = 30, 1
        if variant == "paper":
            config.local.lr, config.local.clip = LITERAL, 0.0
            config.local.batch, config.run.rounds = 128, 10
            config.data.examples = 50_000
    else:
        raise ConfigError(
            f"variant {variant!r} of {config.experiment.split('.')[-1]}: must be one of fast, "
            + ", ".join(DATASETS)
        )
