"""Opens a study for a worker: registers it, and makes the context of the worker's trials."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from tuner.output.captured import CapturedOutput
from tuner.output.log import is_json
from tuner.search.population import PopulationPruner
from tuner.search.view import MetricView, PrunerView, SamplerView
from tuner.storage.artifacts import StudyArtifacts
from tuner.storage.optuna.storage import Storage, WindowedStorage
from tuner.storage.read.lineage import read_metric
from tuner.storage.read.queries import RECORD_KEY, find_record
from tuner.storage.sql.background_calls import Background
from tuner.storage.sql.dialect import now_s
from tuner.storage.sql.retry import PROMPT, patient
from tuner.storage.sql.statements import SPACE_VERSION_KEY
from tuner.storage.worker import claims
from tuner.storage.worker.claims import Claimant
from tuner.storage.worker.preference import Preference
from tuner.storage.worker.renewal import Renewals
from tuner.storage.worker.searches import agree_on_search, prepare_search
from tuner.storage.worker.studies import Owner, Registered, register, set_ownership
from tuner.study import StudyData, StudySpec
from tuner.study.ownership import default_owner
from tuner.trial import Event, Stop
from tuner.trial.environment import LAUNCHED_VARIABLE
from tuner.trial.events import SearchPrepared
from tuner.worker.compile_ahead import static_parameters
from tuner.worker.context import FinalWrites, Place, ProgramModes, Samplers, WorkerContext
from tuner.worker.files.trial_files import make_study_files
from tuner.worker.follow import STUDY
from tuner.worker.group import Leader
from tuner.worker.trainables.choose import make_trainable
from tuner.worker.trainables.trainable import Trainable

if TYPE_CHECKING:
    import optuna

    from tuner.search import Agreed
    from tuner.worker.population import Population

LEASE_S = 30.0


@dataclass(frozen=True)
class _Opened:
    """A study as the storage has it.

    Attributes:
        registered: Its id, its identity and its record.
        space_version: How often its space was migrated; None if never.
        agreed: What is stored with it for its sampler.
        notes: What was done to prepare its search.
    """

    registered: Registered
    space_version: Any
    agreed: Agreed
    notes: Sequence[str]


def open_study(
    study: StudySpec,
    data: StudyData | None,
    storage: Storage,
    name: str,
    say: Callable[[Event], None],
    stop: Stop,
    place: Place,
    trainable: Trainable | None = None,
    group: Leader | None = None,
    output: CapturedOutput | None = None,
) -> WorkerContext:
    """Register a study, if it is new, and return the context of a worker's trials.

    Args:
        study: The study.
        data: Its data; None if it has none.
        storage: Optuna's view of the database, with an engine that has a worker's patience.
        name: The worker's name.
        say: Receives the worker's events.
        stop: Whether the worker must stop.
        place: Devices, and the information about the study in checkpoints.
        trainable: Trains the trials; made from the study by default.
        group: The other processes of a worker that spans hosts.
        output: Writes what a trial prints to its log.

    Raises:
        UsageError: the study cannot run as it is written, or differs from the recorded one.
        StorageLost: the database cannot be reached.
    """
    _configure_logging()
    engine = storage.engine
    opened = _register(study, storage, group)
    registered = opened.registered
    search, pruning = _optuna_studies(study, storage, opened)
    artifacts = place.artifacts.of_study(study.name, registered.identity)
    claimant = _claimant(study, storage, name, place, opened)
    background = Background("reports")
    prompt_engine = patient(engine, dataclasses.replace(PROMPT, is_over=lambda: stop.requested))
    must_stop = partial(claims.must_stop, prompt_engine, claimant)
    if trainable is None:
        load = None if data is None else data.for_hparams
        modes = ProgramModes(engine, registered.study_id)
        trainable = make_trainable(study, load, place.runtime, place.about, registered.record, modes.choose, group)
    context = WorkerContext(
        study=study,
        study_id=registered.study_id,
        trainable=trainable,
        storage=storage,
        engine=engine,
        prompt_engine=prompt_engine,
        background=background,
        renewals=Renewals(engine, LEASE_S, must_stop, lambda: stop.requested),
        gatherer=background,
        optuna_study=search,
        pruning_study=pruning,
        claimant=claimant,
        files=make_study_files(artifacts, stop),
        artifacts=artifacts,
        place=place,
        time_use=place.time_use,
        stop=stop,
        samplers=Samplers(study, opened.agreed),
        final_writes=FinalWrites(engine),
        listener=say,
        population=_population(study, storage, registered.study_id, artifacts),
        output=output,
    )
    for note in opened.notes:
        context.say(SearchPrepared(note))
    return context


def _configure_logging() -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if is_json():
        optuna.logging.disable_default_handler()
        optuna.logging.enable_propagation()


def _register(study: StudySpec, storage: Storage, group: Leader | None) -> _Opened:
    """Register a study, check that it is the recorded one, and agree with the other workers on its search."""
    engine = storage.engine
    prepared = prepare_search(engine, study)
    registered = register(storage, engine, study.name, study.all_directions, study.record())
    # Before the record is read: a migration in between is noticed by the first claim.
    version = find_record(engine, registered.study_id, SPACE_VERSION_KEY)
    study.check_unchanged(find_record(engine, registered.study_id, RECORD_KEY) or registered.record)
    if group is not None:
        group.agree(STUDY, lambda: registered.record)
    owner = Owner(default_owner(), is_certain=False) if study.owner is None else Owner(study.owner)
    set_ownership(engine, registered.study_id, owner, study.labels)
    agreed = agree_on_search(engine, registered.study_id, study, prepared)
    return _Opened(registered, version, agreed, prepared.notes)


def _optuna_studies(study: StudySpec, storage: Storage, opened: _Opened) -> tuple[optuna.Study, optuna.Study]:
    """Return the study as its sampler and as its pruner see it."""
    import optuna

    given: dict[str, Any] = {"sampler": study.make_sampler(0, opened.agreed), "pruner": study.make_pruner()}
    seen: Any = WindowedStorage(storage) if study.sees_window(opened.agreed) else storage
    # After a migration, some trials may have other distributions, or be outside of the space.
    view: Any = SamplerView(seen, None if opened.space_version is None else study.distributions())
    followed, judged = study.followed, cast("Any", PrunerView(cast("Any", storage)))
    if followed.metric is not None:
        curves = partial(read_metric, storage.engine, metric=followed.metric)
        judged = cast("Any", MetricView(judged, followed.maximize[0], curves))
    search = optuna.load_study(study_name=study.name, storage=view, **given)
    return search, optuna.load_study(study_name=study.name, storage=judged, **given)


def _claimant(study: StudySpec, storage: Storage, name: str, place: Place, opened: _Opened) -> Claimant:
    # Errors from before the launch may be fixed. The launch counts, not the start of this worker: a worker that
    # starts later, or again, would otherwise let the same error end three more trials.
    launched_for_s = time.time() - float(os.environ.get(LAUNCHED_VARIABLE) or time.time())
    return Claimant(
        opened.registered.study_id,
        name,
        trials=study.trials,
        lease_s=LEASE_S,
        wall_s=None if study.wall_hours is None else 3600 * study.wall_hours,
        device_s=None if study.device_hours is None else 3600 * study.device_hours,
        devices=place.runtime.device_count,
        identity=opened.registered.identity,
        failures_since_s=now_s(storage.engine) - launched_for_s,
        space_version=None if opened.space_version is None else str(opened.space_version),
        preference=Preference(static_parameters(study)),
    )


def _population(study: StudySpec, storage: Storage, study_id: int, artifacts: StudyArtifacts) -> Population | None:
    if not isinstance(study.make_pruner(), PopulationPruner):
        return None
    from tuner.worker.population import Population

    return Population(study, study_id, patient(storage.engine, PROMPT), artifacts)
