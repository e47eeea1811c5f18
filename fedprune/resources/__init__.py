"""What a round takes: rates, seconds, joules, bits and weights, of every device."""

from fedprune.resources.rate import full_rate as full_rate
from fedprune.resources.rate import rate as rate
from fedprune.resources.rate import watts as watts
from fedprune.resources.work import PAYLOADS as PAYLOADS
from fedprune.resources.work import Work as Work
from fedprune.resources.work import bits_sent as bits_sent
from fedprune.resources.work import compute_seconds as compute_seconds
from fedprune.resources.work import energy as energy
from fedprune.resources.work import hierarchical as hierarchical
from fedprune.resources.work import personalized as personalized
from fedprune.resources.work import round_seconds as round_seconds
from fedprune.resources.work import seconds as seconds
from fedprune.resources.work import uplink_seconds as uplink_seconds
from fedprune.resources.work import weights_sent as weights_sent
