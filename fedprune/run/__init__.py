"""On the device: rounds by ``scan``, arms by ``vmap``, all inside one ``shard_map``.

An *arm* is one run of one algorithm: a seed and a set of numeric hyperparameters. Arms whose shapes
agree form one program, whatever else differs between them.
"""

from fedprune.run.evaluate import BINS as BINS
from fedprune.run.evaluate import ClientMetrics as ClientMetrics
from fedprune.run.evaluate import Evaluate as Evaluate
from fedprune.run.evaluate import Metrics as Metrics
from fedprune.run.evaluate import client_evaluation as client_evaluation
from fedprune.run.evaluate import delivery as delivery
from fedprune.run.evaluate import evaluation as evaluation
from fedprune.run.programs import Arms as Arms
from fedprune.run.programs import Footprint as Footprint
from fedprune.run.programs import footprint as footprint
from fedprune.run.programs import head as head
from fedprune.run.programs import pad as pad
from fedprune.run.programs import program as program
from fedprune.run.programs import start as start
from fedprune.run.simulation import simulate as simulate
