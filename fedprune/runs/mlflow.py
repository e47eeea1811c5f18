"""Numbers of rounds in a store of MLflow: an SQL database, such as SQLite, or a tracking server.

Each arm and seed is a run of MLflow, in an experiment that has the fedprune experiment's name. Runs
are not nested: the table of MLflow groups runs by a tag, such as ``fedprune.arm``, and then shows
the mean over the seeds, which it does not for children of a run.

    parameters   the arm's configuration, by path; as of the run's first start
    metrics      the numbers of every round, and ``round`` itself
    tags         fedprune.run (the id in run.json), fedprune.arm, fedprune.seed, fedprune.folder

A run that is resumed finds its MLflow runs by these tags. The metric ``round`` is written last, in
one transaction with the round's other numbers, so that it says which rounds are there. Only of a
round of more than 999 numbers, which takes several transactions, may some be there twice after a
kill.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedprune.runs.writers import About, Open, Rounds, Writer, WriterError, guarded

METRICS, PARAMETERS = 1000, 100
"""that MLflow takes at once"""
QUICK = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""before the run, where MLflow would ask a server for minutes"""
STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


def connect(uri: str) -> Open:
    """Opens writers to a store that has just answered.

    Args:
      uri: of an SQL database, as sqlite:///FILE.db, or of a tracking server, as http://HOST:PORT.

    Raises:
      WriterError: MLflow is not installed, or the store does not answer.
    """
    try:
        from mlflow.tracking import MlflowClient
    except ImportError as e:
        raise WriterError(
            f"log mlflow: needs the extra mlflow: pip install 'fedprune[mlflow]' ({e})"
        ) from e
    try:
        _require_database(uri)
        with _environment(QUICK):
            client = MlflowClient(uri)
            client.search_experiments(max_results=1)
    except Exception as e:  # MLflow, requests and SQLAlchemy raise many kinds
        raise WriterError(f"log mlflow: {uri} does not answer ({_short(e)})") from e

    def said(error: Exception) -> str:
        return f"log mlflow: {uri} failed ({_short(error)})"

    def open(about: About) -> Writer:
        try:
            return guarded(_writer(client, about), said)
        except Exception as e:
            raise WriterError(said(e)) from e

    return open


def _writer(client: Any, about: About) -> Writer:
    from mlflow.entities import Metric, Param

    experiment = _experiment(client, about.experiment)
    known = {_label(run): run for run in _runs(client, experiment, about.id)}
    ids: dict[tuple[str, int], str] = {}
    lost = False

    def begin(arm: str, seed: int, done: int) -> int:
        run = known.get((arm, str(seed)))
        if run is None:
            tags = {
                "fedprune.run": about.id,
                "fedprune.arm": arm,
                "fedprune.seed": str(seed),
                "fedprune.folder": str(about.folder.absolute()),
            }
            name = f"{about.folder.name}/{arm}/seed{seed}"
            run = client.create_run(experiment, tags=tags, run_name=name)
        else:
            client.update_run(run.info.run_id, status="RUNNING")
        ids[arm, seed] = run.info.run_id
        values = {**about.arms[arm], "seed": seed}
        missing = [Param(k, str(v)) for k, v in values.items() if k not in run.data.params]
        for at in range(0, len(missing), PARAMETERS):
            client.log_batch(run.info.run_id, params=missing[at : at + PARAMETERS])
        return int(run.data.metrics.get("round", 0))

    def write(arm: str, seed: int, rounds: Rounds) -> None:
        nonlocal lost
        now, batch = int(1000 * time.time()), list[Any]()
        lost = True
        for step, numbers in rounds.items():
            found = [Metric(name, value, now, step) for name, value in numbers.items()]
            found.append(Metric("round", step, now, step))
            if len(batch) + len(found) > METRICS:
                client.log_batch(ids[arm, seed], metrics=batch)
                batch = []
            batch += found
            while len(batch) > METRICS:
                client.log_batch(ids[arm, seed], metrics=batch[:METRICS])
                batch = batch[METRICS:]
        client.log_batch(ids[arm, seed], metrics=batch)
        lost = False

    def close(ended: str) -> None:
        if not lost:  # each call would wait for the store again
            for run_id in ids.values():
                client.set_terminated(run_id, STATUS[ended])

    return Writer(begin, write, close)


def _experiment(client: Any, name: str) -> str:
    """The id of an experiment, which is made where there is none."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name)
        except MlflowException:  # another trial has just made it
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return found.experiment_id


def _runs(client: Any, experiment: str, run: str) -> Iterator[Any]:
    """The runs of MLflow that belong to a run of fedprune."""
    token: str | None = ""
    wanted = f"tags.`fedprune.run` = '{run}'"
    while token is not None:
        page = client.search_runs([experiment], wanted, page_token=token or None)
        yield from page
        token = page.token or None


def _label(run: Any) -> tuple[str, str]:
    return run.data.tags["fedprune.arm"], run.data.tags["fedprune.seed"]


def _require_database(uri: str) -> None:
    """Reads from an SQL database, which MLflow itself would try ten times."""
    kind, _, place = uri.partition("://")
    if kind.partition("+")[0] not in ("sqlite", "postgresql", "mysql", "mssql"):
        return
    if kind == "sqlite" and not Path(place.removeprefix("/")).exists():  # MLflow makes it
        return
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri)
    try:
        sqlalchemy.inspect(engine).get_table_names()
    finally:
        engine.dispose()


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."
