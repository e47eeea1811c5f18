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
