"""Pruning: scores, exact selection, schedules and the pruners that they make."""

from fedprune.prune.neurons import neurons as neurons
from fedprune.prune.pruner import Predicate as Predicate
from fedprune.prune.pruner import by_layer as by_layer
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
from fedprune.prune.structured import Structure as Structure
from fedprune.prune.structured import Units as Units
from fedprune.prune.structured import blocks as blocks
from fedprune.prune.structured import chain as chain
from fedprune.prune.structured import kept_units as kept_units
from fedprune.prune.structured import mask_of as mask_of
from fedprune.prune.structured import shrink as shrink
from fedprune.prune.structured import structured as structured
from fedprune.prune.structured import widths as widths
from fedprune.prune.threshold import top_k as top_k
