"""PyTorch by hand. Arguments: workload, then what to do:

  loop     federated averaging: one model, the clients in turn
  central  no federation: the same number of steps of one model, on all examples
  vmap     federated averaging with torch.func: some clients at once, stacked

Memory format and number of threads (for ``vmap`` the number of clients at once) are those that are
fastest on a part of the workload.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch.func import functional_call, grad, vmap

from benchmarks.peers.torch_models import (
    FORMATS,
    batches,
    cohort,
    convolutional,
    examples,
    network,
    train,
)
from benchmarks.worker import fastest, serve
from benchmarks.workloads import LEARNING_RATE, Workload

Round = Callable[[Workload, torch.Tensor, torch.Tensor, str], None]


def loop() -> Round:
    """One model takes the part of one client after another."""
    model, server = None, None

    def one_round(w: Workload, x: torch.Tensor, y: torch.Tensor, memory: str) -> None:
        nonlocal model, server
        if model is None:
            model = network(w.model)
            server = [p.detach().clone() for p in model.parameters()]
        model.to(memory_format=FORMATS[memory])
        params = list(model.parameters())
        optimizer = torch.optim.SGD(params, lr=LEARNING_RATE)
        total = [torch.zeros_like(p) for p in params]
        for k in cohort(w):
            with torch.no_grad():
                torch._foreach_copy_(params, server)
            rows = batches(w) + k * w.examples
            train(model, optimizer, x, y, rows, FORMATS[memory])
            with torch.no_grad():
                torch._foreach_add_(total, params, alpha=1 / w.cohort)
        torch._foreach_copy_(server, total)

    return one_round


def central() -> Round:
    """As many steps as a federated round has, without one."""
    model = None

    def one_round(w: Workload, x: torch.Tensor, y: torch.Tensor, memory: str) -> None:
        nonlocal model
        model = (model or network(w.model)).to(memory_format=FORMATS[memory])
        optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
        rows = torch.randint(len(x), (w.cohort * w.steps, w.batch))
        train(model, optimizer, x, y, rows, FORMATS[memory])

    return one_round


def stacked() -> Round:
    """Some clients at once, by ``torch.func.vmap`` over their weights."""
    model, server = None, None

    def one_round(w: Workload, x: torch.Tensor, y: torch.Tensor, at_once: str) -> None:
        nonlocal model, server
        if model is None:
            model = network(w.model)
            server = {k: p.detach().clone() for k, p in model.named_parameters()}
        objective = lambda p, x, y: F.cross_entropy(functional_call(model, p, (x,)), y)
        gradients = vmap(grad(objective))
        total = {k: torch.zeros_like(p) for k, p in server.items()}
        with torch.no_grad():
            for some in torch.tensor(cohort(w)).split(int(at_once)):
                params = {k: p.expand(len(some), *p.shape).clone() for k, p in server.items()}
                rows = torch.stack([batches(w) + k * w.examples for k in some], 1)
                for row in rows:
                    g = gradients(params, x[row], y[row])
                    for k in params:
                        params[k].add_(g[k], alpha=-LEARNING_RATE)
                for k in params:
                    total[k].add_(params[k].sum(0), alpha=1 / w.cohort)
        server = total

    return one_round


MODES = {"loop": loop, "central": central, "vmap": stacked}


def prepare(w: Workload) -> tuple[Callable[[], None], dict]:
    mode = sys.argv[2]
    torch.manual_seed(0)
    x, y = examples(w)
    one_round = MODES[mode]()
    part = w._replace(timed=min(w.cohort, 10 if mode == "vmap" else 2))

    def at(setting: str, work: Workload) -> None:
        how, threads = setting.split(", ")
        torch.set_num_threads(int(threads.split()[0]))
        one_round(work, x, y, how)

    cores = len(os.sched_getaffinity(0))
    threads = [f"{n} threads" for n in sorted({1, cores})]
    if mode == "vmap":
        ways, threads = [n for n in ("1", "5", "10") if int(n) <= w.cohort], threads[-1:]
    else:
        ways = list(FORMATS) if convolutional(w.model) else ["contiguous"]
    settings = [", ".join(pair) for pair in itertools.product(ways, threads)]
    best = fastest({s: partial(at, s, part) for s in settings})

    def turn() -> None:
        for _ in range(w.rounds):
            at(best, w)

    kind = "clients at once" if mode == "vmap" else "memory format"
    return turn, {"versions": {"torch": torch.__version__}, "setting": f"{kind} {best}"}


if __name__ == "__main__":
    serve(prepare)
