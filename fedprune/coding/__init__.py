"""Analog codes: weights as real symbols, with more of them for the layers that need it."""

from fedprune.coding.code import Code as Code
from fedprune.coding.eigen import Eigenvalue as Eigenvalue
from fedprune.coding.eigen import lanczos as lanczos
from fedprune.coding.eigen import power_iteration as power_iteration
from fedprune.coding.expansion import FAMILIES as FAMILIES
from fedprune.coding.expansion import expansion as expansion
from fedprune.coding.layers import Side as Side
from fedprune.coding.layers import amplitudes as amplitudes
from fedprune.coding.layers import decode_layers as decode_layers
from fedprune.coding.layers import encode_layers as encode_layers
from fedprune.coding.layers import root_mean_square as root_mean_square
from fedprune.coding.layers import sent as sent
from fedprune.coding.protection import expansions as expansions
from fedprune.coding.repetition import repetition as repetition
from fedprune.coding.repetition import repetition_error as repetition_error
from fedprune.coding.sensitivity import hessian_sensitivity as hessian_sensitivity
from fedprune.coding.sensitivity import loss_sensitivity as loss_sensitivity
from fedprune.coding.spiral import best_gamma as best_gamma
from fedprune.coding.spiral import nearest_on_spiral as nearest_on_spiral
from fedprune.coding.spiral import spiral as spiral
from fedprune.coding.spiral import spiral_error as spiral_error
from fedprune.coding.spiral import theta as theta
