"""Pruning: scores, exact selection, schedules and the pruners that they make."""

from fedprune.prune.neurons import neurons as neurons
from fedprune.prune.pruner import Predicate as Predicate
from fedprune.prune.pruner import kernels as kernels
from fedprune.prune.pruner import named as named
from fedprune.prune.pruner import scheduled as scheduled
from fedprune.prune.pruner import selection as selection
from fedprune.prune.schedule import Schedule as Schedule
from fedprune.prune.schedule import constant as constant
from fedprune.prune.schedule import cubic as cubic
from fedprune.prune.schedule import iterative as iterative
from fedprune.prune.schedule import linear as linear
from fedprune.prune.schedule import one_shot as one_shot
from fedprune.prune.scores import magnitude as magnitude
from fedprune.prune.threshold import top_k as top_k
