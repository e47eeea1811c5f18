"""Channels: what happens to symbols on the air."""

from fedprune.channel.awgn import PACKINGS as PACKINGS
from fedprune.channel.awgn import channel_uses as channel_uses
from fedprune.channel.awgn import noise as noise
from fedprune.channel.awgn import noise_to_signal as noise_to_signal
from fedprune.channel.awgn import rotate as rotate
from fedprune.channel.fading import Fading as Fading
from fedprune.channel.fading import Gains as Gains
from fedprune.channel.fading import block_fading as block_fading
from fedprune.channel.fading import budget_db as budget_db
from fedprune.channel.fading import none as none
from fedprune.channel.fading import orthogonal_gains as orthogonal_gains
from fedprune.channel.fading import path_gain as path_gain
from fedprune.channel.fading import places as places
from fedprune.channel.point_to_point import clear as clear
from fedprune.channel.point_to_point import noise_after as noise_after
from fedprune.channel.point_to_point import real_noise as real_noise
from fedprune.channel.point_to_point import real_power as real_power
from fedprune.channel.point_to_point import slow_rayleigh as slow_rayleigh
from fedprune.channel.point_to_point import transmit as transmit
from fedprune.channel.point_to_point import weight_deviation as weight_deviation
from fedprune.channel.rates import adaptive_rate as adaptive_rate
from fedprune.channel.rates import capacity as capacity
from fedprune.channel.rates import ergodic_capacity as ergodic_capacity
from fedprune.channel.rates import fixed_rate as fixed_rate
from fedprune.channel.rates import outage as outage
from fedprune.channel.rates import step_curve as step_curve
