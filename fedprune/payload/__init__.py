"""Bytes that a masked model takes, in every usual encoding."""

from fedprune.payload.sizes import bitmap as bitmap
from fedprune.payload.sizes import coo as coo
from fedprune.payload.sizes import csr as csr
from fedprune.payload.sizes import dense as dense
from fedprune.payload.sizes import entropy_bound as entropy_bound
from fedprune.payload.sizes import gzipped as gzipped
from fedprune.payload.sizes import indices as indices
from fedprune.payload.sizes import kernels as kernels
from fedprune.payload.sizes import sizes as sizes
from fedprune.payload.sizes import table as table
from fedprune.payload.sizes import values as values
