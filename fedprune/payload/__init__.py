"""Masked models as bytes: their size in every usual encoding, files and bitstreams."""

from fedprune.payload.entropy import FormatError as FormatError
from fedprune.payload.files import from_bytes as from_bytes
from fedprune.payload.files import load as load
from fedprune.payload.files import save as save
from fedprune.payload.files import to_bytes as to_bytes
from fedprune.payload.refinement import refine as refine
from fedprune.payload.refinement import restore as restore
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
