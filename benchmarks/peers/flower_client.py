"""A client of ``flower``, in a module that Ray's actors can import."""

from __future__ import annotations

import functools
import sys

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from benchmarks.peers.torch_models import (
    FORMATS,
    batches,
    convolutional,
    examples,
    network,
    train,
)
from benchmarks.workloads import LEARNING_RATE, workload

app = ClientApp()


def settings() -> dict[str, str]:
    """What a client has to be told: the actors do not see our command line."""
    return {"workload": sys.argv[1]}


@functools.cache
def _examples(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    return examples(workload(name))


@app.train()
def fit(message: Message, context: Context) -> Message:
    name = message.content["config"]["workload"]
    w = workload(name)
    torch.set_num_threads(1)
    x, y = _examples(name)
    memory = FORMATS["channels_last" if convolutional(w.model) else "contiguous"]
    model = network(w.model).to(memory_format=memory)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    rows = batches(w) + int(context.node_config["partition-id"]) * w.examples
    train(model, optimizer, x, y, rows, memory)
    reply = {
        "arrays": ArrayRecord(model.state_dict()),
        "metrics": MetricRecord({"num-examples": w.examples}),
    }
    return Message(content=RecordDict(reply), reply_to=message)
