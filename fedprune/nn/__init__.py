"""Per-client compute that stays fast under vmap and scan."""

from fedprune.nn.conv import conv as conv
from fedprune.nn.pool import max_pool as max_pool
