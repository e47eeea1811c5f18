"""Channels: what happens to symbols on the air."""

from fedprune.channel.awgn import PACKINGS as PACKINGS
from fedprune.channel.awgn import channel_uses as channel_uses
from fedprune.channel.awgn import noise as noise
from fedprune.channel.awgn import noise_to_signal as noise_to_signal
