"""Data: sources, partitions over clients, and arrays for the device."""

from fedprune.data.clients import Federation as Federation
from fedprune.data.clients import federate as federate
from fedprune.data.dataset import DataError as DataError
from fedprune.data.dataset import Dataset as Dataset
from fedprune.data.dataset import checked as checked
from fedprune.data.dataset import first as first
from fedprune.data.partition import Partition as Partition
from fedprune.data.partition import by_group as by_group
from fedprune.data.partition import class_counts as class_counts
from fedprune.data.partition import dirichlet as dirichlet
from fedprune.data.partition import iid as iid
from fedprune.data.partition import label_k as label_k
from fedprune.data.partition import shards as shards
from fedprune.data.partition import summary as summary
from fedprune.data.sources import NAMES as NAMES
from fedprune.data.sources import load as load
from fedprune.data.sources import read_idx as read_idx
