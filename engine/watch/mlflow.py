"""Trainings as runs of MLflow, on its server or in its local store."""

from __future__ import annotations

import importlib.util
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

from polychrome.engine.errors import UserError, first_line
from polychrome.engine.history import EpochRow
from polychrome.engine.watch.logger import Logger, Training, scalars

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
MOST = 100  # parameters in a request


class MLflow(Logger):
    """A run of MLflow for a training, in the experiment of the task's name; a training that goes on has its run again.

    MLflow says where: MLFLOW_TRACKING_URI, or its own default. MLFLOW_EXPERIMENT_NAME names another experiment.
    Nothing global is changed: other runs of the process are left alone.
    """

    def __init__(self, training: Training) -> None:
        from mlflow import MlflowClient

        self.client = MlflowClient()
        experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or training.task)
        wanted = f"tags.`polychrome.id` = '{training.id}'"
        newest = ["attributes.start_time DESC"]
        found = self.client.search_runs([experiment], wanted, max_results=1, order_by=newest)
        self.run = found[0].info.run_id if found else self._create(experiment, training)
        if found:
            self.client.update_run(self.run, status="RUNNING")
            self.last = max(self._steps("loss/train"), default=0)
        self._set(training.settings, found[0].data.params if found else {})

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        if (found := self.client.get_experiment_by_name(name)) is None:
            try:
                return self.client.create_experiment(name)
            except MlflowException:  # another process was faster
                if (found := self.client.get_experiment_by_name(name)) is None:
                    raise
        return found.experiment_id

    def _create(self, experiment: str, training: Training) -> str:
        from mlflow.tracking.context.registry import resolve_tags  # who runs which program

        own = {"id": training.id, "run": training.run, "network": training.network}
        tags = resolve_tags({f"polychrome.{name}": value for name, value in own.items()})
        return self.client.create_run(experiment, run_name=training.name, tags=tags).info.run_id

    def _set(self, settings: Mapping, before: Mapping[str, str]) -> None:
        """Log settings as parameters; as a parameter never changes, one of another value than before is a tag."""
        from mlflow.entities import Param

        values = {name: str(value) for name, value in settings.items()}
        new = [Param(name, value) for name, value in values.items() if name not in before]
        for start in range(0, len(new), MOST):
            self.client.log_batch(self.run, params=new[start : start + MOST])
        for name, value in values.items():
            if before.get(name, value) != value:
                self.client.set_tag(self.run, f"resumed with {name}", value)

    def _steps(self, name: str) -> list[int]:
        return [metric.step for metric in self.client.get_metric_history(self.run, name)]

    def epoch(self, row: EpochRow, images_per_second: float, idle: float | None = None) -> None:
        self._log(row.epoch, scalars(row, images_per_second, idle))

    def result(self, epoch: int, figures: Mapping[str, float], pictures: Mapping[str, Path]) -> None:
        figures = named(figures)
        shown = {}
        if epoch in self._steps(next(iter(figures))):  # the network is tested again: the last of a step's values counts
            shown = self.client.get_run(self.run).data.metrics
        self._log(epoch, {name: value for name, value in figures.items() if shown.get(name) != value})

    def _log(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(self.run, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def close(self, failed: bool = False) -> None:
        self.client.set_terminated(self.run, "FAILED" if failed else "FINISHED")


def named(figures: Mapping[str, float]) -> dict[str, float]:
    """Return figures by names that MLflow takes, `red_nir` for `red+nir`; no two get the same name."""
    found: dict[str, float] = {}
    for name, value in figures.items():
        name = re.sub(r"[^\w\-. :/]", "_", name)
        while name in found:
            name += "_"
        found[name] = value
    return found


def check() -> None:
    """Raise UserError where MLflow's store cannot be opened; a server is not asked."""
    import mlflow

    scheme = re.split("[:+]", mlflow.get_tracking_uri(), maxsplit=1)[0]
    if scheme in DATABASES and importlib.util.find_spec("sqlalchemy") is None:
        raise UserError(
            f"--logger mlflow: MLflow would keep its runs in a database ({scheme}), for which mlflow-skinny lacks "
            "packages: pip install mlflow, or set MLFLOW_TRACKING_URI to the address of a server"
        )
    try:
        mlflow.MlflowClient()
    except Exception as error:  # of MLflow, of its database, of a plugin
        raise UserError(f"--logger mlflow: {first_line(error)}") from error
