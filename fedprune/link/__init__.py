"""Links: encode, channel, decode."""

from fedprune.link.delivery import Protection as Protection
from fedprune.link.delivery import analog as analog
from fedprune.link.delivery import deviations as deviations
from fedprune.link.delivery import injection as injection
from fedprune.link.delivery import layer_names as layer_names
from fedprune.link.delivery import one_by_one as one_by_one
from fedprune.link.digital import orthogonal as orthogonal
from fedprune.link.holders import holders as holders
from fedprune.link.ofdma import ofdma as ofdma
from fedprune.link.uplink import NORMALISATIONS as NORMALISATIONS
from fedprune.link.uplink import free as free
from fedprune.link.uplink import ideal as ideal
from fedprune.link.uplink import over_the_air as over_the_air
