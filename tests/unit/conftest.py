"""What all unit tests need."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _patient_training() -> Iterator[None]:  # pyright: ignore[reportUnusedFunction]
    """Make trainings wait for each decision of the pruner, also on a machine that stands still for seconds."""
    from tuner.worker.attempts import reports

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reports, "_ANSWER_S", 60.0)
        yield
