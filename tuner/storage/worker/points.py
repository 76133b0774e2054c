"""Points of a grid: each trial gets one that no other trial has, for any number of workers."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from tuner.storage.sql.retry import write
from tuner.storage.sql.tables import studies, trial_system_attributes, trials
from tuner.storage.worker.fences import Change, Lease, fenced, lost_lease, run_write, upsert

Point = Mapping[str, Any]
Choice = Callable[[Sequence[Point], Collection[int]], Point]


def take_point(
    engine: Engine,
    lease: Lease | None,
    trial_id: int,
    study_id: int,
    key: str,
    choose: Choice,
) -> Point:
    """Choose a trial's point, given the points of other trials, and store it with the trial.

    Args:
        engine: The storage's engine.
        lease: The lease on the trial; None for a trial of another tool.
        trial_id: The trial.
        study_id: Its study.
        key: The system attribute for points.
        choose: Returns the point, given the points of the study's other trials that have not failed, and the numbers
            of all failed trials, some of which may still have been running when the caller read them.

    Raises:
        LeaseLost: another worker has the trial.

    Concurrency: one transaction that locks the study's row, so that two trials cannot choose at once.
    """
    lock = sa.select(studies.c.study_id).where(studies.c.study_id == study_id).with_for_update(key_share=True)
    failed = sa.select(trials.c.number).where(trials.c.study_id == study_id, trials.c.state == "FAIL")
    noted = trials.join(trial_system_attributes, trial_system_attributes.c.trial_id == trials.c.trial_id)
    others = (
        sa.select(trial_system_attributes.c.value_json)
        .select_from(noted)
        .where(trials.c.study_id == study_id, trials.c.state != "FAIL", trials.c.trial_id != trial_id)
        .where(trial_system_attributes.c.key == key)
    )

    def work(connection: Connection, _: int) -> Point:
        connection.execute(lock)
        points = [json.loads(text) for text in connection.execute(others).scalars()]
        point = choose(points, set(connection.execute(failed).scalars()))
        row = {"key": key, "value_json": json.dumps(point)}
        noting = upsert(trial_system_attributes, [row], "key")
        if lease is None:
            run_write(connection, trial_id, noting)
        elif not fenced(connection, lease, Change.EXTEND, [noting]):
            raise lost_lease(lease)
        return point

    return write(engine, work)
