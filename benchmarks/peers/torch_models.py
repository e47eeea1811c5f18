"""The workloads' networks in PyTorch, and their data."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.workloads import CLASSES, Workload, images

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class Cnn(nn.Module):
    """The network of P4: two 5×5 convolutions with pooling, two dense layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 5, padding=2)
        self.conv2 = nn.Conv2d(32, 64, 5, padding=2)
        self.dense1 = nn.Linear(3136, 128)
        self.dense2 = nn.Linear(128, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.dense2(F.relu(self.dense1(x.flatten(1))))


class CifarCnn(nn.Module):
    """The two 3×3 convolutions and two dense layers of pfl-research's CIFAR10 benchmark."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.dense1 = nn.Linear(14 * 14 * 64, 128)
        self.dense2 = nn.Linear(128, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.conv2(F.relu(self.conv1(x)))), 2)
        return self.dense2(F.relu(self.dense1(x.flatten(1))))


class _Block(nn.Module):
    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(32, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(32, width)
        self.shortcut = nn.Identity()
        if stride > 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, width, 1, stride, bias=False), nn.GroupNorm(32, width)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class ResNet18(nn.Module):
    """As ``fedprune.models.resnet18``, with group norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(32, 64)
        blocks, before = [], 64
        for width in (64, 128, 256, 512):
            blocks += [_Block(before, width, 1 if width == 64 else 2), _Block(width, width, 1)]
            before = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(512, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(F.relu(self.norm(self.stem(x))))
        return self.head(x.mean((2, 3)))


def network(name: str) -> nn.Module:
    """A fresh network of a workload's ``model``."""
    dense = {
        "mlp": lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, CLASSES)
        ),
        "logistic": lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, CLASSES)),
    }
    return {"cnn": Cnn, "cifar_cnn": CifarCnn, "resnet18": ResNet18, **dense}[name]()


def convolutional(name: str) -> bool:
    return name not in ("mlp", "logistic")


def examples(w: Workload) -> tuple[torch.Tensor, torch.Tensor]:
    """x [n, c, h, w] float32 in [0, 1] and y [n], users in order."""
    x, y = images(w)
    return torch.from_numpy(x).permute(0, 3, 1, 2).contiguous().float().div_(255), torch.from_numpy(
        y
    )


def batches(w: Workload) -> torch.Tensor:
    """Positions [steps, batch] among a user's examples."""
    if w.epoch:
        return torch.randperm(w.examples).view(w.steps, w.batch)
    return torch.randint(w.examples, (w.steps, w.batch))


def cohort(w: Workload) -> list[int]:
    """The users of one round."""
    return torch.randperm(w.population)[: w.cohort].tolist()


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: torch.Tensor,
    y: torch.Tensor,
    rows: torch.Tensor,
    memory: torch.memory_format,
) -> None:
    """SGD steps on the rows [steps, batch] of x and y."""
    for row in rows:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(x[row].contiguous(memory_format=memory)), y[row]).backward()
        optimizer.step()
