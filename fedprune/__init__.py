"""Federated learning with model pruning over wireless channels, as one jit function a round."""

from fedprune import algorithms as algorithms
from fedprune import allocation as allocation
from fedprune import backend as backend
from fedprune import channel as channel
from fedprune import coding as coding
from fedprune import data as data
from fedprune import link as link
from fedprune import local as local
from fedprune import mesh as mesh
from fedprune import models as models
from fedprune import nn as nn
from fedprune import payload as payload
from fedprune import prune as prune
from fedprune import resources as resources
from fedprune import rng as rng
from fedprune import round as round
from fedprune import run as run
from fedprune import server as server
from fedprune import theory as theory
from fedprune import tree as tree

__version__ = "0.1.0"
