"""Links: encode, channel, decode."""

from fedprune.link.digital import orthogonal as orthogonal
from fedprune.link.holders import holders as holders
from fedprune.link.ofdma import ofdma as ofdma
from fedprune.link.uplink import NORMALISATIONS as NORMALISATIONS
from fedprune.link.uplink import ideal as ideal
from fedprune.link.uplink import over_the_air as over_the_air
