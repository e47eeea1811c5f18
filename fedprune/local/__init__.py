"""Local training: what one client does in one round."""

from fedprune.local.sgd import cross_entropy as cross_entropy
from fedprune.local.sgd import sgd as sgd
