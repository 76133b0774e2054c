"""Record the table that `search_quality.py` searches: a multilayer perceptron on the digits, at each point of a grid.

    python benchmarks/digits_table.py --out benchmarks/digits_table.csv

This trains 384 trials of ten epochs, about four minutes on one core. A trial's row has its hyperparameters, and the
validation loss, the validation accuracy and the number of parameters of its model after the last epoch.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tuner import Space, Study, int_uniform, log_uniform, uniform

sys.path.insert(0, str(Path(__file__).parents[1] / "studies"))

GRID: Mapping[str, Sequence[float]] = {
    "learning_rate": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 2e-2, 5e-2, 1e-1),
    "weight_decay": (1e-6, 1e-2),
    "dropout_rate": (0.0, 0.2, 0.4),
    "width": (16, 32, 48, 64),
    "depth": (1, 2),
}
METRICS = ("loss", "accuracy", "parameters")


class HParams(Space):
    """The hyperparameters of `studies/digits_mlp.py` that the grid has."""

    learning_rate: float = log_uniform(1e-4, 1e-1)
    weight_decay: float = log_uniform(1e-6, 1e-2)
    dropout_rate: float = uniform(0.0, 0.4)
    width: int = int_uniform(16, 64, step=16)
    depth: int = int_uniform(1, 2)
    label_smoothing: float = 0.0


def record(out: Path) -> None:
    """Train a trial at each point of the grid, and write the table."""
    import digits_mlp  # pyright: ignore[reportMissingImports] # of studies/

    values = {name: list(GRID[name]) for name in ("learning_rate", "weight_decay", "dropout_rate")}
    study = Study(
        name="digits_table",
        space=HParams,
        trainer=digits_mlp.Trainer(),
        data=digits_mlp.data,
        objective="loss",
        direction="minimize",
        epochs=10,
        trials=math.prod(map(len, GRID.values())),
        sampler={"name": "grid", "values": values},
        pruner="none",
        measure=["parameters"],
        keep_best=0,
    )
    with tempfile.TemporaryDirectory() as folder:
        opened = study.run(f"sqlite:///{folder}/tuner.db")
        curves = opened.curves()
        last = curves[curves["epoch"] == curves["epoch"].max()].set_index("number")
        trials = opened.trials().set_index("number").rename(columns=lambda name: name.removeprefix("hparams."))
        table = trials[list(GRID)].join(last[list(METRICS)])
    table.sort_values(list(GRID)).to_csv(out, index=False, float_format="%.6g")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("digits_table.csv"))
    record(parser.parse_args().out)
