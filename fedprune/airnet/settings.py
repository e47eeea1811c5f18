"""The configuration of AirNet's experiments, and P3's recipe.

Settings in common:

  fast    embedded Fashion-MNIST, a CNN of three convolutions (8, 16, 32 filters of 3×3, 32 hidden
          units, 15,466 weights, 0.52 million multiplications an image), 12 × 100 steps of batch 32
          a stage, momentum 0.9 at learning rate 0.02 that falls to a tenth by a cosine, divided by
          1 + t^2 where a teacher of temperature t = 2 adds its part to the loss
          (``teacher_rate``), 3 seeds; b is 2,000 complex channel uses of two reals each, a quarter
          of the weights. Of 0.01, 0.02, 0.03 and 0.1 this learning rate had the best mean accuracy
          of nets delivered at the 0, 5 and 10 dB that they were trained for
          (``airnet_mismatch:fast``, seed 0).
  full    all of Fashion-MNIST, 12 × 1,000 steps a stage.
  paper   P3 section VII-A, for an accelerator. Small-VGG16 on CIFAR-10; SGD with momentum 0.9, 30
          epochs at learning rate 0.01 and 30 at 0.001, with a teacher or without, for the first
          training, after every pruning step and in every later stage; b is that of the figure.
  paper_resnet  the same for Figs. 5 and 6b: ResNet-34 with batch norm on Tiny ImageNet, whose
          images are resized to 256 × 256 pixels, of which the central 224 × 224 are taken; 60
          epochs at 0.001 and 30 at 0.0001.

How ``paper`` and ``paper_resnet`` read what P3 leaves open:

  batch        128 examples
  seeds        3
  momentum     starts anew with every 30 epochs: they are one round of the federation of one
  augmentation none
  packing      two reals a channel use, so that the SNR of a real is that of the link. (P3 maps each
               parameter to a symbol, but sends vectors of C^b)
  pruning      5 steps, by equal shares of what is left. How filters of different layers are
               ranked: by their rank in their layer, so that layers lose equal shares (by mean |w|,
               all together, one of the 32 hidden units of ``fast`` was left, and 30 % accuracy)
  equal steps  nets that are not expanded are trained on for as many epochs as those that are
               retrained after their expansion. A net whose pruning is separate from noise is
               retrained with noise after its last pruning step, in the epochs that follow it
  teacher      the dense net, from the first pruning step on; the student is not tempered, as P3
               prints it
  fading       nets for fading (Figs. 4c, 4d, 5c, 5d) take one h a training step, |h| at least 0.1.
               Boundary networks are weighed by the mean SNR, since the sender does not know h
  sensitivity  Hessian of the mean loss of 128 training images, by 12 products; the noise of the
               loss-based one is the channel's
  draws        4 of the noise for each accuracy, 96 of h under fading
  b of Fig. 6, Fig. 8a  those of Fig. 4a (or 5a) and Fig. 8b; the ticks of all axes but their
               stated ends
  side         biases, norms and two reals a layer are sent without error, in the digital baselines
               too
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from fedprune.config import Config, ConfigError, spec

SILENT = 200.0
"""SNR in dB that stands for no noise"""
TEMPERATURE = 2.0
"""of the teacher, P3 section IV-D"""
LARGEST = {"repetition": 8, "spiral": 4}
"""symbols a weight, at most"""


VGG, RESNET = "paper", "paper_resnet"
"""variants with P3's recipe"""


@dataclass
class AirNet(Config):
    """The common fields, those of training and those of delivery."""

    snrs_db: tuple[float, ...] = spec((), "SNRs of delivery", low=-30, high=100, unit="dB")
    uses: int = spec(2000, "bandwidth b", low=1, high=1_000_000_000, unit="complex channel uses")
    teacher_rate: str = spec(
        "divided",
        "learning rate where a teacher adds its part to the loss: divided by 1 + t^2, by which it"
        " makes gradients larger; or the same as without",
        choices=("divided", "same"),
    )
    restart: bool = spec(
        False,
        "whether the learning rate runs through its schedule after every pruning step, in"
        " pruning.every rounds, which are also the length of a stage without pruning; or once in"
        " run.rounds, the length of every stage",
    )
    resize: int = spec(
        0, "pixels to which images are resized (bilinear); 0: as they are", low=0, high=4096
    )
    crop: int = spec(
        0, "pixels of the centre that are taken of resized images; 0: all", low=0, high=4096
    )
    draws: int = spec(4, "draws of the noise for each accuracy", low=1, high=1_000_000)
    fading_draws: int = spec(96, "draws of h for each accuracy under fading", low=1, high=1_000_000)
    test_images: int = spec(1000, "test images of each draw", low=1, high=100_000_000)
    curvature_images: int = spec(128, "training images of a sensitivity", low=1, high=100_000_000)
    products: int = spec(12, "Hessian products of a sensitivity", low=2, high=1_000_000)


@dataclass
class Comparison(AirNet):
    """Also the digital models that AirNet is compared with, and the nets for fading."""

    shares: tuple[float, ...] = spec(
        (0.3, 0.15, 0.07, 0.03), "of the weights that digital models keep", above=0, high=1
    )
    widths: tuple[float, ...] = spec(
        (0.5, 0.25, 0.15), "of small dense digital models, beside the dense net", above=0, high=1
    )
    fading_nets: str = spec(
        "same",
        "what is delivered under fading: the nets trained without it, or nets trained for it",
        choices=("same", "own"),
    )


C = TypeVar("C", bound=AirNet)


def setting(
    kind: type[C], experiment: str, variant: str, snrs_db: Mapping[str, Sequence[float]]
) -> C:
    """The configuration of a variant.

    Args:
      kind: of the configuration.
      experiment: name of the file.
      variant: one of the keys of ``snrs_db``.
      snrs_db: SNRs of delivery of each variant.

    Raises:
      ConfigError: an unknown variant.
    """
    if variant not in snrs_db:
        allowed = ", ".join(snrs_db)
        raise ConfigError(f"variant {variant!r} of {experiment}: must be one of {allowed}")
    c = kind(experiment=experiment, variant=variant)
    c.snrs_db = tuple(map(float, snrs_db[variant]))
    c.data.clients, c.uplink.link = 1, "ideal"
    c.downlink.link = "analog"
    c.pruning.schedule, c.pruning.granularity = "iterative", "unit"
    c.pruning.start, c.pruning.every, c.pruning.steps = 0, 2, 4
    c.pruning.distribution = "layer"
    c.run.rounds = c.run.every = 12
    if variant in (VGG, RESNET):
        _recipe(c, variant)
        return c
    c.model.cnn.filters = (8, 16, 32)
    c.local.lr, c.local.steps = 0.02, 100
    c.local.schedule, c.local.schedule_end = "cosine", 0.1
    if variant == "full":
        c.data.name, c.local.steps, c.test_images = "fashion_mnist", 1000, 10_000
    return c


def _recipe(c: AirNet, variant: str) -> None:
    """P3 section VII-A. A round has 30 epochs, so the learning rate falls between two rounds."""
    c.local.batch, c.local.steps, c.local.epochs = 128, 0, 30
    c.local.schedule, c.local.schedule_factor = "step", 0.1
    c.teacher_rate, c.restart = "same", True
    if variant == VGG:
        c.data.name, c.model.name, c.model.vgg16.hidden = "cifar10", "vgg16", (512, 512)
        c.local.lr, c.local.schedule_every, c.pruning.every = 0.01, 1, 2
        c.uses = 1_200_000
    else:
        c.data.name, c.model.name, c.model.resnet.stem = "tiny_imagenet", "resnet34", "large"
        c.model.resnet.norm, c.resize, c.crop = "batch", 256, 224
        c.local.lr, c.local.schedule_every, c.pruning.every = 0.001, 2, 3
        c.uses = 4_500_000
    c.pruning.steps = 5
    c.run.rounds = c.run.every = c.pruning.steps * c.pruning.every
    c.test_images = 10_000
    if isinstance(c, Comparison):
        c.fading_nets = "own"
