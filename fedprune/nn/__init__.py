"""Per-client compute that stays fast under vmap and scan, and batch normalisation."""

from fedprune.nn.conv import conv as conv
from fedprune.nn.norm import batch_norm as batch_norm
from fedprune.nn.pool import max_pool as max_pool
