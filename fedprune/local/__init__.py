"""Local training: what one client does in one round."""

from fedprune.local import decay as decay
from fedprune.local.decay import Decay as Decay
from fedprune.local.distillation import Distillation as Distillation
from fedprune.local.distillation import distillation as distillation
from fedprune.local.optimizers import adjusted as adjusted
from fedprune.local.own_masks import Importance as Importance
from fedprune.local.own_masks import allocated as allocated
from fedprune.local.own_masks import change as change
from fedprune.local.own_masks import magnitude as magnitude
from fedprune.local.own_masks import own_masks as own_masks
from fedprune.local.personal import Make as Make
from fedprune.local.personal import alternating as alternating
from fedprune.local.personal import copies as copies
from fedprune.local.personal import ditto as ditto
from fedprune.local.personal import frozen as frozen
from fedprune.local.personal import parts as parts
from fedprune.local.personal import simultaneous as simultaneous
from fedprune.local.personal import tuned as tuned
from fedprune.local.sgd import cross_entropy as cross_entropy
from fedprune.local.sgd import microbatch_size as microbatch_size
from fedprune.local.sgd import sgd as sgd
from fedprune.local.snr import interpolated as interpolated
from fedprune.local.snr import pair as pair
from fedprune.local.snr import sandwich as sandwich
from fedprune.local.snr import share_of_high as share_of_high
