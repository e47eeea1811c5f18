"""Flower: its simulation by Ray with one actor a core, federated averaging without evaluation.

Each actor has one thread, and convolutions run channels last. ``flower_client`` is the client.
"""

from __future__ import annotations

import os

os.environ |= {
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

from importlib.metadata import version

from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks.peers import flower_client
from benchmarks.peers.torch_models import network
from benchmarks.worker import Turns, asked

CORES = len(os.sched_getaffinity(0))


def main() -> None:
    turns, w = Turns(), asked()
    server = ServerApp()

    def after_round(number: int, arrays: ArrayRecord) -> None:
        if number == 0:
            turns.begin()
        elif number % w.rounds == 0:
            versions = {name: version(name) for name in ("flwr", "ray", "torch")}
            if not turns.more(versions=versions, setting=f"{CORES} actors"):
                os._exit(0)

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        strategy = FedAvg(
            fraction_train=w.cohort / w.population,
            fraction_evaluate=0.0,
            min_train_nodes=w.cohort,
            min_available_nodes=w.population,
        )
        strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(network(w.model).state_dict()),
            num_rounds=1_000_000,
            evaluate_fn=after_round,
            train_config=ConfigRecord(flower_client.settings()),
        )

    run_simulation(
        server_app=server,
        client_app=flower_client.app,
        num_supernodes=w.population,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": CORES, "log_to_driver": False},
        },
    )


if __name__ == "__main__":
    main()
