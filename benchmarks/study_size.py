"""How many bytes of a Postgres database does a trial need?

    python benchmarks/study_size.py [--trials 1000] [--reports 10 50] [--metrics 4 12] [--json FILE]

Needs the `test` extra, which includes the server. A real worker runs trials whose training takes no time.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from sleepy_study import Trainer, sleepy_study
from storage_overhead import Server

from tuner.storage import parse_url
from tuner.trial import Report
from tuner.worker import run_worker

WARM_UP = 100
"""The number of trials before the measurement, because even an empty table has pages."""


class Talkative(Trainer):
    """Reports the given number of metrics, with as many digits as real metrics."""

    def __init__(self, metrics: int) -> None:
        self.metrics = metrics

    def train_model(self, *arguments: Any, **options: Any) -> Any:
        """Yield the reports."""
        for report in super().train_model(*arguments, **options):
            names = ["loss", "train_loss", *(f"metric_{index}" for index in range(self.metrics - 2))]
            values = [report.metrics["loss"] / (3 + index) for index, _ in enumerate(names)]
            yield Report(report.epoch, report.step, dict(zip(names, values, strict=True)))


def measure(server: Server, epochs: int, metrics: int, trials: int) -> dict[str, Any]:
    """Return the bytes that a trial adds to each table, including indexes."""
    url = server.new_database()
    study = sleepy_study(epochs=epochs, pruner="asha")
    study = dataclasses.replace(study, trainer=Talkative(metrics))
    with tempfile.TemporaryDirectory() as folder:
        run_worker(dataclasses.replace(study, trials=WARM_UP), url, artifacts=folder)
        before = sizes(url)
        run_worker(dataclasses.replace(study, trials=WARM_UP + trials), url, artifacts=folder)
    added = {name: (size - before[name]) / trials for name, size in sizes(url).items() if size != before[name]}
    return {"epochs": epochs, "metrics": metrics, "trials": trials, "bytes": sum(added.values()), "tables": added}


def sizes(url: str) -> dict[str, int]:
    """Return the bytes of each table, including indexes, after a VACUUM."""
    engine = sa.create_engine(parse_url(url).driver, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql("VACUUM")
        query = "SELECT relname, pg_total_relation_size(oid) FROM pg_class WHERE relkind = 'r' AND relnamespace = "
        found = connection.exec_driver_sql(query + "'public'::regnamespace").all()
    engine.dispose()
    return dict(map(tuple, found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--reports", type=int, nargs="+", default=[10, 50], help="of each trial")
    parser.add_argument("--metrics", type=int, nargs="+", default=[4, 12], help="of each report")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="tuner-bench-") as folder:
        os.chmod(folder, 0o755)
        server = Server(folder)
        try:
            rows = [
                measure(server, epochs, metrics, arguments.trials)
                for epochs, metrics in itertools.product(arguments.reports, arguments.metrics)
            ]
        finally:
            server.close()
    for row in rows:
        tables = ", ".join(f"{name} {size:.0f}" for name, size in sorted(row["tables"].items(), key=lambda at: -at[1]))
        print(f"{row['epochs']} epochs of {row['metrics']} metrics: {row['bytes']:.0f} bytes a trial ({tables})")
    if arguments.json:
        with arguments.json.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
