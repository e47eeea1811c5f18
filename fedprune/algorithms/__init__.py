"""Whole methods of papers, one file each, put together from stages."""

from fedprune.algorithms import feddst as feddst
from fedprune.algorithms import prunefl as prunefl
from fedprune.algorithms import scaffold as scaffold
from fedprune.algorithms import selection as selection
