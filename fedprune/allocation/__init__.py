"""Who gets which share of the band, and how much each device prunes, within a time limit."""

from fedprune.allocation.baselines import clipped_form as clipped_form
from fedprune.allocation.baselines import closed_form as closed_form
from fedprune.allocation.baselines import equal as equal
from fedprune.allocation.baselines import post_hoc as post_hoc
from fedprune.allocation.baselines import unpruned as unpruned
from fedprune.allocation.exact import by_edge as by_edge
from fedprune.allocation.exact import least_threshold as least_threshold
from fedprune.allocation.exact import optimal as optimal
from fedprune.allocation.problem import FORMS as FORMS
from fedprune.allocation.problem import Allocation as Allocation
from fedprune.allocation.problem import Problem as Problem
from fedprune.allocation.problem import box as box
from fedprune.allocation.problem import kept as kept
from fedprune.allocation.problem import problem as problem
from fedprune.allocation.problem import terms as terms
