"""Networks as pairs of pure functions. The only place that knows flax."""

from fedprune.models.adapters import from_linen as from_linen
from fedprune.models.adapters import from_nnx as from_nnx
from fedprune.models.layers import BatchNorm as BatchNorm
from fedprune.models.networks import cnn as cnn
from fedprune.models.networks import mlp as mlp
from fedprune.models.precision import compute_in as compute_in
from fedprune.models.resnet import resnet as resnet
from fedprune.models.resnet import resnet18 as resnet18
from fedprune.models.resnet import resnet34 as resnet34
from fedprune.models.signal import signal as signal
from fedprune.models.vgg import VGG_DEPTHS as VGG_DEPTHS
from fedprune.models.vgg import small_vgg16 as small_vgg16
from fedprune.models.vgg import vgg as vgg
