"""pfl-research: its simulated backend and federated averaging, a process for every core.

The processes find each other by pfl's own environment variables; this one is the first and starts
the others, which answer nobody. Each has one thread, and convolutions run channels last.
"""

from __future__ import annotations

import os
import subprocess
import sys

WORKERS = len(os.sched_getaffinity(0))
if WORKERS > 1 and "PFL_WORKER_RANK" not in os.environ:
    port = 20_000 + os.getpid() % 20_000
    addresses = ",".join(f"localhost:{port + i}" for i in range(WORKERS))
    os.environ |= {"PFL_WORKER_ADDRESSES": addresses, "PFL_WORKER_RANK": "0"}
    for rank in range(1, WORKERS):
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.peers.pfl", *sys.argv[1:]],
            env={**os.environ, "PFL_WORKER_RANK": str(rank)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )

import pfl
import torch
import torch.nn.functional as F
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import nn

from benchmarks.peers.torch_models import FORMATS, batches, convolutional, examples, network
from benchmarks.worker import Turns, asked
from benchmarks.workloads import LEARNING_RATE

FIRST = os.environ.get("PFL_WORKER_RANK", "0") == "0"


class Net(nn.Module):
    """A network with the two methods that pfl asks for."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.network = network(name)
        if convolutional(name):
            self.to(memory_format=FORMATS["channels_last"])

    def loss(self, x: torch.Tensor, y: torch.Tensor, eval: bool = False) -> torch.Tensor:
        return F.cross_entropy(self.network(x), y)

    def metrics(self, x: torch.Tensor, y: torch.Tensor, eval: bool = True) -> dict:
        return {"loss": Weighted(self.loss(x, y).item() * len(y), len(y))}


class Stop(Exception):
    """Nothing more is asked for."""


class Clock(TrainingProcessCallback):
    """Ends a turn after every ``rounds`` rounds; the other processes wait in the next one."""

    def __init__(self, turns: Turns, rounds: int) -> None:
        self._turns, self._rounds, self._done = turns, rounds, 0

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        self._done += 1
        if self._done % self._rounds == 0:
            facts = {"pfl": pfl.__version__, "torch": torch.__version__}
            if not self._turns.more(versions=facts, setting=f"{WORKERS} processes"):
                raise Stop
        return False, Metrics()


def main() -> None:
    turns = Turns() if FIRST else None
    w = asked()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, y = examples(w)

    def user(k: int) -> PyTorchTensorDataset:
        rows = batches(w).flatten() + k * w.examples
        return PyTorchTensorDataset((x[rows], y[rows]), user_id=str(k))

    data = FederatedDataset(user, get_user_sampler("random", list(range(w.population))))
    net = Net(w.model)
    algorithm = FederatedAveraging()
    algorithm._current_central_iteration = 1  # the first one would evaluate every user, twice
    callbacks = []
    if turns is not None:
        callbacks = [Clock(turns, w.rounds)]
        turns.begin()
    algorithm.run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=1_000_000,
            evaluation_frequency=1_000_000,
            train_cohort_size=w.cohort,
            val_cohort_size=None,
        ),
        backend=SimulatedBackend(
            training_data=data, val_data=data, postprocessors=[WeightByDatapoints()]
        ),
        model=PyTorchModel(net, torch.optim.SGD, torch.optim.SGD(net.parameters(), lr=1.0)),
        callbacks=callbacks,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=LEARNING_RATE, local_batch_size=w.batch
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=None),
    )


if __name__ == "__main__":
    try:
        main()
    except Stop:
        os._exit(0)  # the others find the connection closed and end
    except Exception:
        if FIRST:
            raise
