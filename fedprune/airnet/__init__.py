"""P3's AirNet: nets trained for a noisy link, delivered over it and measured.

The way through the files, each of which imports earlier ones only:

  settings    the configuration, its variants, P3's recipe and how it is read
  lab         data, network and the nets that were trained, kept in the run's folder
  training    the stages of training
  protection  sensitivities and unequal protection
  delivery    nets sent through the link, over draws of noise and fading
  digital     digital baselines
  comparison  all schemes at some SNRs or bandwidths (Figs. 4 and 5)
  present     accuracies against SNR as a report
"""

from fedprune.airnet.comparison import Point as Point
from fedprune.airnet.comparison import best_digital as best_digital
from fedprune.airnet.comparison import best_mean as best_mean
from fedprune.airnet.comparison import compare as compare
from fedprune.airnet.comparison import comparison_figures as comparison_figures
from fedprune.airnet.comparison import comparison_tables as comparison_tables
from fedprune.airnet.delivery import Case as Case
from fedprune.airnet.delivery import clean as clean
from fedprune.airnet.delivery import deliver as deliver
from fedprune.airnet.delivery import lines as lines
from fedprune.airnet.digital import digital as digital
from fedprune.airnet.digital import digital_accuracies as digital_accuracies
from fedprune.airnet.digital import small_streams as small_streams
from fedprune.airnet.digital import streams as streams
from fedprune.airnet.lab import Kept as Kept
from fedprune.airnet.lab import Lab as Lab
from fedprune.airnet.lab import Net as Net
from fedprune.airnet.lab import resized as resized
from fedprune.airnet.present import arms as arms
from fedprune.airnet.present import present as present
from fedprune.airnet.present import verdicts as verdicts
from fedprune.airnet.protection import protect as protect
from fedprune.airnet.protection import sensitivities as sensitivities
from fedprune.airnet.settings import RESNET as RESNET
from fedprune.airnet.settings import SILENT as SILENT
from fedprune.airnet.settings import TEMPERATURE as TEMPERATURE
from fedprune.airnet.settings import VGG as VGG
from fedprune.airnet.settings import AirNet as AirNet
from fedprune.airnet.settings import Comparison as Comparison
from fedprune.airnet.settings import setting as setting
from fedprune.airnet.training import course as course
from fedprune.airnet.training import decay as decay
from fedprune.airnet.training import dense as dense
from fedprune.airnet.training import pair as pair
from fedprune.airnet.training import pruned as pruned
from fedprune.airnet.training import train as train
