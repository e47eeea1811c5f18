"""Federated averaging by hand in PyTorch: one model, the clients in turn.

Arguments: workload, then "channels_last" or "contiguous". PyTorch's own threads use all cores.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.workloads import LEARNING_RATE, Workload, images, serve


class Cnn(nn.Module):
    """The network of P4: two 5×5 convolutions with pooling, two dense layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 5, padding=2)
        self.conv2 = nn.Conv2d(32, 64, 5, padding=2)
        self.dense1 = nn.Linear(3136, 128)
        self.dense2 = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.dense2(F.relu(self.dense1(x.flatten(1))))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 10))


def prepare(workload: Workload) -> tuple[Callable[[], None], dict]:
    torch.manual_seed(0)
    x, y = images()
    size = len(x) // workload.clients
    memory = {
        "channels_last": torch.channels_last,
        "contiguous": torch.contiguous_format,
    }[sys.argv[2]]
    model = (Cnn() if workload.model == "cnn" else mlp()).to(memory_format=memory)
    examples = torch.from_numpy(x).float().div_(255).unsqueeze(1).split(size)
    labels = torch.from_numpy(y).split(size)
    params = list(model.parameters())
    server = [p.detach().clone() for p in params]
    optimizer = torch.optim.SGD(params, lr=LEARNING_RATE)

    def one_round() -> None:
        total = [torch.zeros_like(p) for p in server]
        for k in range(workload.clients):
            with torch.no_grad():
                torch._foreach_copy_(params, server)
            rows = torch.randint(size, (workload.steps, workload.batch))
            for step in rows:
                optimizer.zero_grad(set_to_none=True)
                batch = examples[k][step].contiguous(memory_format=memory)
                F.cross_entropy(model(batch), labels[k][step]).backward()
                optimizer.step()
            with torch.no_grad():
                torch._foreach_add_(total, params, alpha=1 / workload.clients)
        torch._foreach_copy_(server, total)

    return one_round, {"version": torch.__version__, "threads": torch.get_num_threads()}


if __name__ == "__main__":
    serve(prepare)
