"""Optuna's own suites for samplers, run over our storage: what they are told of past trials is what they expect."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
from optuna.samplers import BaseSampler, CmaEsSampler, NSGAIISampler, QMCSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
    SingleOnlySamplerTestCase,
)
from storage_tools import new_database, opened

import tuner
from tuner.storage.optuna.storage import Storage

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
]

Make = Callable[[], BaseSampler]


@pytest.fixture(scope="module")
def with_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with empty tables."""
    path = tmp_path_factory.mktemp("samplers") / "empty.db"
    with opened(f"sqlite:///{path}"):
        return path


@pytest.fixture(scope="module")
def postgres_of_samplers(postgres_server: str) -> str:
    return new_database(postgres_server)


class OverOurStorage:
    """A suite whose studies without a storage are in ours."""

    @pytest.fixture
    def url(self, with_tables: Path, tmp_path: Path) -> str:
        return f"sqlite:///{shutil.copy(with_tables, tmp_path / 'study.db')}"

    @pytest.fixture(autouse=True)
    def in_our_storage(self, url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        storages: list[Storage] = []

        def get_storage(storage: BaseStorage | str | None) -> BaseStorage:
            assert storage is None or storage in storages
            if storage is None:
                storages.append(tuner.open_storage(url))
            return storages[-1]

        def refuse(*_: object) -> None:
            raise AssertionError("a study was kept in memory")

        monkeypatch.setattr(optuna.storages, "get_storage", get_storage)
        monkeypatch.setattr(optuna.storages.InMemoryStorage, "__init__", refuse)
        yield
        assert storages
        # As the database has it: all trials of all studies that the test made.
        for storage in storages:
            with storage.engine.connect() as connection:
                assert connection.exec_driver_sql("SELECT count(*) FROM trials").scalar_one() > 0
            storage.close()


@pytest.mark.long
class TestTPE(OverOurStorage, BasicSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Make:
        return lambda: TPESampler(n_startup_trials=0)


@pytest.mark.long
class TestMultivariateTPE(OverOurStorage, BasicSamplerTestCase, RelativeSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Make:
        return lambda: TPESampler(n_startup_trials=0, multivariate=True)


class TestRandom(OverOurStorage, BasicSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Make:
        return RandomSampler


@pytest.mark.long
class TestRandomOnPostgres(TestRandom):
    @pytest.fixture
    def url(self, postgres_of_samplers: str) -> str:
        return postgres_of_samplers


@pytest.mark.long
class TestCmaEs(OverOurStorage, BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Make:
        return lambda: CmaEsSampler(n_startup_trials=0)


@pytest.mark.long
class TestCmaEsOnPostgres(OverOurStorage, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    @pytest.fixture
    def url(self, postgres_of_samplers: str) -> str:
        return postgres_of_samplers

    @pytest.fixture
    def sampler(self) -> Make:
        return lambda: CmaEsSampler(n_startup_trials=0)


@pytest.mark.long
class TestNSGAII(OverOurStorage, BasicSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Make:
        return NSGAIISampler


@pytest.mark.long
class TestQMC(OverOurStorage, BasicSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Make:
        return QMCSampler
