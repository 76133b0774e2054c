"""Studies in databases that the tests of one module share."""

from collections.abc import Iterator

import pytest
from budgeted_study import BudgetedStudy
from storage_tools import StudyDatabase, shared_study_database


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def shared_db(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StudyDatabase]:
    with shared_study_database(request, tmp_path_factory, "shared") as db:
        yield db


@pytest.fixture
def db(shared_db: StudyDatabase) -> BudgetedStudy:
    return BudgetedStudy(shared_db.url, shared_db.storage, shared_db.engine)


@pytest.fixture(scope="module", params=["postgres"])
def shared_postgres(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StudyDatabase]:
    with shared_study_database(request, tmp_path_factory, "shared_postgres") as db:
        yield db


@pytest.fixture
def postgres_db(shared_postgres: StudyDatabase) -> BudgetedStudy:
    return BudgetedStudy(shared_postgres.url, shared_postgres.storage, shared_postgres.engine)
