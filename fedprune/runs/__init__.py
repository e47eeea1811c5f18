"""Runs on the host: their directories and rows, and how an experiment is run in one.

``runs.writers`` says where numbers go beside the rows, of which ``runs.tensorboard`` and
``runs.mlflow`` are two places. ``runs.execution``, ``runs.loop`` and ``runs.checkpoint`` need JAX.
All of these are imported by themselves.
"""

from fedprune.runs.directory import LOCK as LOCK
from fedprune.runs.directory import RunDirectory as RunDirectory
from fedprune.runs.directory import foreign as foreign
from fedprune.runs.directory import locked as locked
from fedprune.runs.files import RunDirectoryError as RunDirectoryError
from fedprune.runs.files import numbered as numbered
from fedprune.runs.files import set_aside as set_aside
from fedprune.runs.files import write_bytes as write_bytes
from fedprune.runs.files import write_json as write_json
from fedprune.runs.files import write_text as write_text
from fedprune.runs.metrics import MetricsFile as MetricsFile
from fedprune.runs.metrics import Row as Row
from fedprune.runs.metrics import checksum as checksum
from fedprune.runs.metrics import read_rows as read_rows
from fedprune.runs.values import differences as differences
from fedprune.runs.values import flat as flat
from fedprune.runs.values import relabelled as relabelled
