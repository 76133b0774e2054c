"""`tuner reproduce` and `tuner confirm`: stored trials trained again by the real commands."""

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tuner.storage import connect
from tuner.storage.sql.tables import confirmations, reports

BASELINE = """
import dataclasses

study = dataclasses.replace(study, epochs=8, baseline=HParams(
    learning_rate=1e-4, weight_decay=1e-2, dropout_rate=0.6, label_smoothing=0.2, width=32, depth=1
))
"""


def make(tuner: Any, *words: str) -> None:
    source = Path(__file__).parents[3] / "studies" / "digits_mlp.py"
    (tuner.folder / "digits.py").write_text(source.read_text() + BASELINE)
    done = tuner.run("launch", "digits.py", "--workers", "2", *words)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_trial_comes_back_bit_for_bit_and_a_changed_record_does_not(tuner_on_sqlite: Any, tiny_study: Path) -> None:
    tuner = tuner_on_sqlite
    done = tuner.run("worker", "tiny.py", "--trials", "2", "--seed", "7", "--set", "noise=0.5")
    assert done.returncode == 0, done.stderr
    refused = tuner.run_here("reproduce", "tiny", "0")
    assert refused.returncode == 2
    assert "has changed since its first launch" in refused.stderr

    # In a process of its own, in which it is the first training.
    done = tuner.run("reproduce", "tiny", "1", "--set", "noise=0.5", "--format", "csv")
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "tuner: trial 1 of 'tiny' is identical, bit for bit"
    rows = [line.split(",") for line in done.stdout.splitlines()]
    assert rows[0] == ["metric", "epochs", "recorded", "found", "difference"]
    assert {row[0] for row in rows[1:]} >= {"loss", "train_loss"}
    assert all((row[2], row[4]) == (row[3], "0.0") for row in rows[1:])
    assert int(rows[1][1]) == len(tuner.rows("show", "tiny", "1")["reports"])

    engine = connect(tuner.env["TUNER_STORAGE"])
    with engine.begin() as connection:
        first = reports.c.epoch == 1
        text = connection.execute(sa.select(reports.c.metrics).where(first, reports.c.trial_id == 1)).scalar_one()
        changed = text.replace('"loss": ', '"loss": 1')
        assert changed != text
        connection.execute(reports.update().where(first, reports.c.trial_id == 1).values(metrics=changed))
    engine.dispose()
    done = tuner.run_here("reproduce", "tiny", "0", "--set", "noise=0.5")
    assert done.returncode == 1
    assert "does not match: the largest relative difference is" in done.stderr.splitlines()[-1]
    assert "(loss)" in done.stderr.splitlines()[-1]
    (tuner.folder / "tiny.py").rename(tuner.folder / "moved.py")
    lost = tuner.run_here("reproduce", "tiny", "1", "--set", "noise=0.5")
    assert (lost.returncode, "is not on this machine: no file" in lost.stderr) == (2, True)
    found = tuner.run_here("reproduce", "tiny", "0", "--set", "noise=0.5", "--tolerance", "0.999", "--file", "moved.py")
    assert found.returncode == 0, found.stderr


@pytest.mark.long
@pytest.mark.slow
def test_the_best_are_ranked_by_other_seeds(tuner_on_postgres: Any) -> None:
    tuner = tuner_on_postgres
    make(tuner, "--trials", "8")
    before = tuner.rows("best", "digits_mlp", "-n", "9")
    assert all(row["confirmed"] is None for row in before)

    done = tuner.run("confirm", "digits_mlp", "-n", "2", "--seeds", "2")
    assert done.returncode == 0, done.stderr
    assert 0 in [row["number"] for row in before[2:]]  # the baseline, which has no good hyperparameters
    top = [*(row["number"] for row in before[:2]), 0]
    said = [line for line in done.stderr.splitlines() if ", seed " in line]
    assert [line.split(":")[1].strip() for line in said] == [
        f"trial {number}, seed {repeat}" for number in top for repeat in (1, 2)
    ]
    after = tuner.rows("best", "digits_mlp", "-n", "9")
    assert sorted(row["number"] for row in after) == sorted(row["number"] for row in before)
    assert {row["number"] for row in after[:3]} == set(top)
    assert after[2]["number"] == 0
    means = [row["confirmed"]["mean"] for row in after[:3]]
    assert means == sorted(means, reverse=True)
    assert all(row["confirmed"] is None for row in after[3:])
    compared = after[0]["baseline"]
    assert (compared["number"], compared["seeds"], compared["value"]) == (0, 2, means[2])
    assert compared["better_by"] == pytest.approx(means[0] - means[2])
    said_of_it = f"trial {after[0]['number']} is better than the baseline (trial 0, "
    assert said_of_it in done.stderr.splitlines()[-1]
    assert said_of_it in tuner.run_here("best", "digits_mlp").stderr
    engine = connect(tuner.env["TUNER_STORAGE"])
    with engine.connect() as connection:
        stored = connection.execute(sa.select(confirmations.c.trial_id, confirmations.c.value)).all()
    engine.dispose()
    assert len(stored) == 6
    by_trial = {trial_id: [value for other, value in stored if other == trial_id] for trial_id, _ in stored}
    assert sorted(means) == pytest.approx(sorted(sum(values) / 2 for values in by_trial.values()))

    # More seeds are added to those that are there; the same seed gives the same number.
    again = tuner.run("confirm", "digits_mlp", "-n", "2", "--seeds", "3")
    assert [line.split(":")[1].strip() for line in again.stderr.splitlines() if ", seed " in line] == [
        f"trial {number}, seed 3" for number in top
    ]
    assert {row["confirmed"]["seeds"] for row in tuner.rows("best", "digits_mlp", "-n", "3")} == {3}
    wrong = tuner.run("confirm", "digits_mlp", "--seeds", "0")
    assert (wrong.returncode, wrong.stderr) == (2, "tuner: --seeds must be at least 1: got 0\n")


@pytest.mark.long
@pytest.mark.slow
def test_a_trial_of_a_cohort_is_compared_with_one_alone(tuner_on_sqlite: Any, tiny_study: Path) -> None:
    tuner = tuner_on_sqlite
    done = tuner.run("worker", "tiny.py", "--cohort", "3", TINY_TRIALS="3")
    assert done.returncode == 0, done.stderr
    assert tuner.rows("show", "tiny", "1")["lanes"] == 3
    done = tuner.run("reproduce", "tiny", "1", TINY_TRIALS="3")
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()[-2:]
    assert said[0].startswith(
        "tuner: trial 1 ran in a program with 3 trainings at once (a cohort, or several seeds) and now "
    )
    assert " matches: the largest relative difference is " in said[1] or said[1].endswith("identical, bit for bit")
