"""Local training: what one client does in one round."""

from fedprune.local import decay as decay
from fedprune.local.decay import Decay as Decay
from fedprune.local.optimizers import adjusted as adjusted
from fedprune.local.sgd import cross_entropy as cross_entropy
from fedprune.local.sgd import sgd as sgd
