"""The settings of a study: space, trainer, data, objective, budget and search in one object."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from tuner.errors import SpaceError, StudyChanged, StudyError, is_int, is_number, nearest
from tuner.output.sanitize import is_unstorable
from tuner.study.command import Command
from tuner.study.constraints import Constraint, parse_constraints
from tuner.study.costs import check_measure
from tuner.study.data import StudyData
from tuner.study.domains import parameters
from tuner.study.launch_record import (
    OPTIMIZER_RULES,
    describe_space,
    differences,
    optimizer_rules_of,
    value_epoch_of,
    with_rules,
)
from tuner.study.objective import OptunaObjective, check_watched
from tuner.study.ownership import check_labels, check_owner
from tuner.study.population import check_population
from tuner.study.sampling import check_cmaes, check_warm_start, context_of
from tuner.study.seeds import SeedPlan, check_seeds, make_plan, seeds_of
from tuner.study.signatures import check_function, takes_hparams
from tuner.study.source import call_study_code
from tuner.study.space import Space, check_fixed, from_params, is_space, parse_fixed, sample, to_params
from tuner.study.stopping import check_stopping, check_terminator, targets_of

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.terminator import BaseTerminator

    from tuner.search import Agreed, Followed

Direction = Literal["maximize", "minimize"]
_Spec = TypeVar("_Spec", bound="StudySpec")


@dataclass(frozen=True, kw_only=True)
class StudySpec:
    """The settings of one search. `tuner.Study` adds `run` and `launch`.

    Attributes:
        name: The study's name in the storage.
        space: A `Space` class, or a function from an Optuna trial to a `Space` instance (define-by-run). An Optuna
            objective has no space.
        trainer: A `tuner.training.TrainerModule` class or instance, which needs `data` and `epochs`.
        data: A function that returns `tuner.training.Splits`. Each worker calls `data(seed)`, with the study's seed,
            once. `data(seed, hparams)` may read static hyperparameters, and is called for each set of values that it
            reads; see `StudyData`.
        train: Instead of a trainer: a function of `(hparams, trial)`, where `trial` is a `tuner.Trial`; a
            `tuner.Command`; a `tuner.OptunaObjective`; or what `tuner.training.vmappable` returned, which trains like a
            trainer and needs no `data`. A function yields the metrics of each epoch, calls
            `trial.report(metrics)`, or only returns a number or metrics. Without a trainer and `train`, a
            study can only be used with `ask` and `tell`.
        objective: The name of a metric that the training reports, or several for a Pareto search.
        direction: `"maximize"` or `"minimize"`, for one objective.
        directions: The directions of several objectives.
        epochs: Passes over the training data in a trial that is not pruned; > 0. With `train`, which decides itself how
            long it trains, only pruners use it.
        value: `"last"` or `"best"`: the epoch whose objective is the trial's value. The model that is kept is that of
            the same epoch.
        trials: The budget: all trials that ended count, except failed ones; > 0.
        seed: Seed of the split, the samplers and (with the trial's number) each trial; >= 0.
        sampler: A name, a mapping with `name` and the sampler's options, or an Optuna sampler.
        warm_start: Names of other studies in the same storage. Their trials, as they are when this study is created,
            are shown to its sampler, if it learns from trials; they are no trials of this study.
        constraints: Bounds of reported metrics, such as `{"latency_ms": "<= 20"}`, for the epoch that gives the
            trial's value. A trial that violates one, or does not report the metric, is never the best.
        pruner: A name, a mapping or an Optuna pruner, likewise; by default `"asha"`, or `"median"` if `epochs` is not
            given, and none with several objectives. `{"name": "asha", "metric": "val_loss", "mode": "min"}` follows
            another metric than the objective. `pbt` trains the trials as a population.
        fixed: Values of parameters that are not searched, by name; part of the study's definition.
        baseline: Hyperparameters to compare with, an instance of `space`. The first trial has them and is never pruned,
            `tuner best` prints how much better the best trial is, and `tuner confirm` how certain that is. Fixed
            hyperparameters are fixed in the baseline too.
        picture: A function that takes a trained model, `tuner.training.Loaded`, and the data, and returns a matplotlib
            figure. `tuner plot NAME picture` draws the model of the best trial, or of another one.
        save_every_s: For a trainer: seconds of training between checkpoints to resume from; a shorter trial writes
            none. A function decides itself when to save.
        keep_best: The number of best trials whose model or saved state is kept; >= 0. With several objectives, those of
            the whole Pareto front are kept, whatever the number; 0 keeps none.
        keep_last: The number of best trials whose last state is kept with the model, so that `tuner extend` can
            continue them; at most `keep_best`. 0 keeps none.
        wall_hours: The budget in hours during which at least one worker runs; None for no limit.
        device_hours: The budget in hours of training, multiplied by the devices of each worker; None for no limit.
        target: The value of the objective at which the study ends, or a mapping with values of several objectives,
            which one trial must reach together. Only complete trials that satisfy their constraints count.
        patience: The study ends when this many trials in a row have not improved on the best one; None for no such
            end. All trials that use budget count.
        noise: With `patience`: the difference of the objective that is no improvement. By default the difference
            that `tuner confirm` finds between two trainings of one trial, or 0 before it was run.
        terminator: One of Optuna's terminators, which ends the study when it expects no more improvement:
            `"best_value_stagnation"`, `"emmr"` or `"regret_bound"`, a mapping with `name` and options, or an Optuna
            terminator.
        trial_minutes: The minutes that one trial may take, compiling included; None for no limit. A trial that takes
            longer ends without a result, with the outcome `timed_out`. The minutes of earlier attempts count if the
            training resumes from their checkpoint.
        stall_minutes: The minutes that a trial may go without a report or another sign of progress, counted from the
            first; None for no limit. A trial that takes longer is given back, and a death of its worker is counted: the
            third one fails the trial.
        retries: How often a trial that raised an error is retried before it counts as failed; >= 0.
        cohort: For a trainer: the number of trials that a worker trains at once in one compiled program, on one device;
            `"auto"` measures which number trains most trials per second. 1 trains one after another.
        measure: For a trainer: costs of the model that each report has as metrics, of `"parameters"`, `"flops"` and
            `"latency_ms"`; see `docs/guide/several-objectives.md`.
        owner: Who the study belongs to; `$TUNER_OWNER`, else the name of the user who launches it first, if None.
        labels: Words by which `tuner studies --label` finds the study.
        seeds: For a trainer: the number of seeds with which each trial trains. The trial's value is the mean over them,
            and it is one trial of the budget. `(1, 3, 5)` trains with one seed to the first rung of the pruner `asha`,
            with three after it, and with five after the next.

    Raises:
        StudyError: a setting is wrong; the message names it.
    """

    name: str
    space: type[Space] | Callable[[optuna.Trial], Space] | None = None
    trainer: Any = None
    data: Callable[..., Any] | None = None
    train: Callable[..., Any] | Command | OptunaObjective | None = None
    objective: str | Sequence[str]
    direction: Direction | None = None
    directions: Sequence[Direction] | None = None
    epochs: int | None = None
    value: Literal["last", "best"] = "last"
    trials: int
    seed: int = 0
    sampler: Any = "tpe"
    warm_start: Sequence[str] = ()
    pruner: Any = None
    constraints: Mapping[str, str] = dataclasses.field(default_factory=dict)
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    baseline: Space | None = None
    picture: Callable[[Any, Any], Any] | None = None
    save_every_s: float = 60.0
    keep_best: int = 3
    keep_last: int = 0
    wall_hours: float | None = None
    device_hours: float | None = None
    target: float | Mapping[str, float] | None = None
    patience: int | None = None
    noise: float | None = None
    terminator: Any = None
    trial_minutes: float | None = None
    stall_minutes: float | None = None
    retries: int = 1
    cohort: int | Literal["auto"] = 1
    seeds: int | Sequence[int] = 1
    measure: Sequence[str] = ()
    owner: str | None = None
    labels: Sequence[str] = ()

    def __post_init__(self) -> None:
        if isinstance(self.trainer, type):
            object.__setattr__(self, "trainer", self.trainer())
        if self.trainer is None and hasattr(self.train, "train_model"):  # a function for compiled programs
            object.__setattr__(self, "trainer", self.train)
            object.__setattr__(self, "train", None)
        if self.data is None and self.trainer is not None:
            object.__setattr__(self, "data", getattr(self.trainer, "own_data", None))
        self._check_settings()
        self._check_search()

    def _check_settings(self) -> None:
        if not isinstance(self.name, str) or not 0 < len(self.name) <= 512:
            raise StudyError(f"the name of a study must be a text of 1 to 512 characters: got {self.name!r}")
        if is_unstorable(self.name):
            raise StudyError(f"the name of a study must not contain NUL or a lone surrogate: got {self.name!r}")
        check_measure(self.measure, self.name, has_trainer=self.trainer is not None)
        check_owner(self.owner)
        check_labels(self.labels)
        self._check_training()
        if self.epochs is not None and (not is_int(self.epochs) or self.epochs < 1):
            raise StudyError(f"epochs must be an integer of at least 1: got {self.epochs!r} (study {self.name!r})")
        for setting, low in (("trials", 1), ("seed", 0), ("keep_best", 0), ("keep_last", 0), ("retries", 0)):
            value = getattr(self, setting)
            if not is_int(value) or value < low:
                raise StudyError(f"{setting} must be an integer of at least {low}: got {value!r} (study {self.name!r})")
        self._check_keep_last()
        if self.cohort != "auto" and (not is_int(self.cohort) or self.cohort < 1):
            raise StudyError(f"cohort must be an integer of at least 1, or 'auto': got {self.cohort!r}")
        if self.cohort != 1 and self.trainer is None:
            raise StudyError(
                "cohort needs a study with `trainer`, or with a function marked with `tuner.training.vmappable`: got "
                f"cohort={self.cohort!r} (study {self.name!r})"
            )
        if check_seeds(self.seeds) != (1,) and self.trainer is None:
            raise StudyError(
                f"seeds needs a study with `trainer`: got seeds={self.seeds!r} (study {self.name!r}); train with "
                "several seeds inside a trial and report the mean, or run `tuner confirm` after the study"
            )
        for setting in ("wall_hours", "device_hours", "trial_minutes", "stall_minutes"):
            limit, unit = getattr(self, setting), setting.partition("_")[2]
            if limit is not None and (not is_number(limit) or not limit > 0):
                raise StudyError(f"{setting} must be a number of {unit} above 0: got {limit!r}")
        if (
            isinstance(self.save_every_s, bool)
            or not isinstance(self.save_every_s, int | float)
            or self.save_every_s < 0
        ):
            raise StudyError(f"save_every_s must be a number of seconds, at least 0: got {self.save_every_s!r}")
        is_objective = isinstance(self.train, OptunaObjective)
        if is_objective and self.space is not None:
            raise StudyError(f"an Optuna objective suggests its own hyperparameters: got space={self.space!r}")
        if not (is_objective or is_space(self.space) or inspect.isfunction(self.space)):
            raise StudyError(f"space must be a Space class or a function of an Optuna trial: got {self.space!r}")
        if isinstance(self.train, Command) and is_space(self.space):
            self.train.check_names(name for name, _, when in parameters(self.space) if not when)
        if self.picture is not None and not callable(self.picture):
            raise StudyError(f"picture must be a function of a trained model and the data: got {self.picture!r}")
        names = self.objectives if isinstance(self.objective, str | list | tuple) else ()
        if not names or len(set(names)) < len(names) or not all(isinstance(name, str) and name for name in names):
            raise StudyError(f"objective must name one metric, or several different metrics: got {self.objective!r}")
        given = [self.direction] if self.direction is not None else list(self.directions or [])
        if (self.direction is None) == (self.directions is None) or len(given) != len(self.objectives):
            raise StudyError(
                f"a study needs one direction for each objective: got objective={self.objective!r}, "
                f"direction={self.direction!r}, directions={self.directions!r} (study {self.name!r})"
            )
        if self.value not in ("last", "best"):
            raise StudyError(f"value must be 'last' or 'best': got {self.value!r}")
        if self.value == "best" and (len(self.objectives) > 1 or is_objective):
            raise StudyError("value='best' needs a training that reports one objective after each epoch")
        for direction in given:
            if direction not in ("maximize", "minimize"):
                raise StudyError(f"a direction must be 'maximize' or 'minimize': got {direction!r}")
        if self.fixed and not is_space(self.space):
            raise StudyError("cannot fix hyperparameters of a define-by-run space: change its function")
        if is_space(self.space):
            check_fixed(self.space, self.fixed)
        if self.baseline is not None:
            self._check_baseline()

    def _check_keep_last(self) -> None:
        about = f"keep_last={self.keep_last} (study {self.name!r})"
        if self.keep_last > self.keep_best:
            raise StudyError(
                f"keep_last must be at most keep_best={self.keep_best}, because a last state is kept with the model: "
                f"got {about}"
            )
        if self.keep_last and self.kind not in ("trainer", "function"):
            raise StudyError(f"keep_last needs a study with trainer= or a function as train=: got {about}")

    def _check_training(self) -> None:
        """Check that the study has either a trainer with its data, or something else to train."""
        name = f"study {self.name!r}"
        if self.trainer is not None and self.train is not None:
            raise StudyError(f"{name} needs either trainer=, a TrainerModule, or train=, a function: got both")
        if self.trainer is not None:
            if not hasattr(self.trainer, "train_model"):
                hint = "; pass a function as train=" if callable(self.trainer) else ""
                raise StudyError(f"trainer must be a TrainerModule class or instance: got {self.trainer!r}{hint}")
            if not callable(self.data):
                raise StudyError(f"data must be a function that takes the study's seed: got {self.data!r}")
            takes_hparams(self.data, "data", "seed")
            if self.epochs is None:
                raise StudyError(f"epochs must be an integer of at least 1: got None ({name})")
            return
        if self.data is not None:
            raise StudyError(f"{name} has data=, which only a trainer uses: load the data in its train function")
        if self.picture is not None:
            raise StudyError(f"{name} has picture=, which needs the model of a trainer: draw it in its train function")
        if not isinstance(self.train, Command | OptunaObjective | None):
            check_function(self.train)

    def _check_baseline(self) -> None:
        if not is_space(self.space):
            raise StudyError("a study with a baseline needs a Space class: got a define-by-run space")
        if type(self.baseline) is not self.space:
            raise StudyError(f"baseline must be hyperparameters, {self.space.__name__}(...): got {self.baseline!r}")
        try:
            from_params(self.space, self.baseline_params)
        except SpaceError as error:
            raise StudyError(f"the baseline is not in the search space: {error}") from None

    @property
    def baseline_params(self) -> dict[str, Any]:
        """The stored hyperparameters of a trial with the baseline; empty without a baseline."""
        if self.baseline is None or not is_space(self.space):
            return {}
        fixed = {
            name: domain.encode(self.fixed[name]) for name, domain, _ in parameters(self.space) if name in self.fixed
        }
        params = to_params(self.baseline)
        return {**params, **{name: value for name, value in fixed.items() if name in params}}

    def _check_search(self) -> None:
        self._check_watched()
        check_cmaes(self.sampler, self.objectives)
        check_warm_start(self)
        check_population(self.make_pruner(), self.name, self.trainer, self.seeds, self.space, self.fixed, self.sampler)
        self.make_sampler(0)
        check_stopping(
            self.name,
            self.objectives,
            target=self.target,
            patience=self.patience,
            noise=self.noise,
            terminator=self.terminator,
        )
        if self.terminator is not None:
            can_report_scores = isinstance(self.train, OptunaObjective)
            check_terminator(
                self.name, self.terminator, self.make_terminator(), self.trials, can_report_scores=can_report_scores
            )
        _ = self.seed_plan

    @property
    def seed_plan(self) -> SeedPlan:
        """How many seeds a trial trains with after each epoch."""
        counts = check_seeds(self.seeds)
        if len(counts) == 1:
            return SeedPlan(counts)
        from tuner.search import rungs_of

        assert self.epochs is not None
        every = getattr(self.trainer, "validate_every", 1)
        last_decision = (self.epochs - 1) // every * every if is_int(every) and every > 0 else self.epochs - 1
        about = f"pruner={self._pruner!r}, epochs={self.epochs} (study {self.name!r})"
        return make_plan(counts, rungs_of(self.make_pruner(), self.epochs), last_decision, about)

    def _check_watched(self) -> None:
        """Check the metrics that only constraints and the pruner read."""
        followed, constraints = self.followed, self.all_constraints
        if isinstance(self.train, OptunaObjective):
            check_watched(constraints, self._pruner, followed)

    @property
    def kind(self) -> str:
        """What trains a trial: `trainer`, `function`, `objective`, `command`, or `ask` for the caller of `ask`."""
        if self.trainer is not None:
            return "trainer"
        return {type(None): "ask", Command: "command", OptunaObjective: "objective"}.get(type(self.train), "function")

    @property
    def objectives(self) -> tuple[str, ...]:
        """The names of the objectives; usually one."""
        return (self.objective,) if isinstance(self.objective, str) else tuple(self.objective)

    @property
    def all_directions(self) -> tuple[Direction, ...]:
        """The direction of each objective."""
        return (self.direction,) if self.direction is not None else tuple(self.directions or ())

    @property
    def targets(self) -> dict[str, float]:
        """The targets by objective; empty without any."""
        return targets_of(self.target, self.objectives)

    def make_terminator(self) -> BaseTerminator:
        """Return the study's terminator."""
        from tuner.search.terminators import make_terminator

        return make_terminator(self.terminator, self.seed)

    @property
    def all_constraints(self) -> tuple[Constraint, ...]:
        """The constraints on metrics."""
        return parse_constraints(self.constraints, self.name)

    @property
    def _pruner(self) -> Any:
        if self.pruner is not None:
            return self.pruner
        return "none" if len(self.objectives) > 1 else "median" if self.epochs is None else "asha"

    @cached_property
    def followed(self) -> Followed:
        """The metrics that the pruner follows."""
        from tuner.search import followed_metrics

        return followed_metrics(self._pruner, self.objectives, self.all_directions)

    @property
    def other_metrics(self) -> list[tuple[str, str]]:
        """The metrics besides the objectives that the training must report: what each is for, and its name."""
        return [
            *(("constraint's metric", constraint.metric) for constraint in self.all_constraints),
            *(() if self.followed.metric is None else [("pruner's metric", self.followed.metric)]),
        ]

    def make_pruner(self) -> optuna.pruners.BasePruner:
        """Return the pruner. It has no state that workers must share."""
        from tuner.search import make_pruner

        # Of another metric, the curve of a trial says nothing about the epoch with the best objective.
        return make_pruner(self._pruner, self.epochs, self.value if self.followed.metric is None else "last")

    def make_sampler(self, number: int, agreed: Agreed | None = None) -> optuna.samplers.BaseSampler:
        """Return the sampler for trial `number`: a new one if it is given by name, otherwise the Optuna object.

        Args:
            number: The trial's number.
            agreed: What is stored with the study for its sampler; None if nothing is stored yet.
        """
        from tuner.search import learns_as, make_sampler

        # With its names, a study does not repeat the random trials of an earlier one that has the same seed.
        is_learning = learns_as(self.sampler)[0] != "random"
        purpose = "/".join(("sampler", *(self.warm_start if is_learning else ())))
        return make_sampler(self.sampler, context_of(self, number, trial_seed(self.seed, number, purpose), agreed))

    def sees_window(self, agreed: Agreed) -> bool:
        """Return whether the sampler sees only a part of the trials of a large study."""
        from tuner.search import sees_window

        return sees_window(self.sampler, agreed.plan)

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return the distributions of all hyperparameters in new trials, by name; none if they are not known before."""
        found = parameters(self.space) if is_space(self.space) else ()
        return {
            name: (domain.only(self.fixed[name]) if name in self.fixed else domain).distribution()
            for name, domain, _ in found
        }

    def sample(self, trial: optuna.Trial) -> Space | None:
        """Return the hyperparameters that Optuna suggests for a trial; None for an Optuna objective.

        Raises:
            StudyError: a define-by-run function did not return a `Space` instance.
        """
        if is_space(self.space):
            return sample(self.space, trial, self.fixed)
        if self.space is None:
            return None
        function: Any = self.space
        hparams = function(trial)
        if not isinstance(hparams, Space):
            raise StudyError(f"the space's function must return a Space instance: got {hparams!r}")
        return hparams

    def hparams_of(self, params: Mapping[str, Any]) -> Space | None:
        """Return the instance for a trial's stored hyperparameters (`hparams` of `tuner show --format json`).

        Raises:
            SpaceError: a parameter is missing, or its value is outside its domain.
        """
        import optuna

        if is_space(self.space):
            return from_params(self.space, params)
        try:
            return self.sample(optuna.trial.FixedTrial(dict(params)))  # pyright: ignore[reportArgumentType]
        except ValueError as error:
            assert self.space is not None
            raise SpaceError(f"invalid hyperparameters for {self.space.__name__}: {error}") from None

    def data_for(self, hparams: Space | None, *, seed: int | None = None) -> Any:
        """Return the data of a trial with these hyperparameters, `tuner.training.Splits`.

        Args:
            hparams: The hyperparameters.
            seed: The seed of the stored study, if it was changed at the launch; the study's own if None.

        Raises:
            StudyError: `data` raised an error, or read a traced hyperparameter; the message has the line or the name.
        """
        assert self.data is not None
        assert hparams is not None
        data = StudyData(self.data, self.seed if seed is None else seed)
        return call_study_code(data.failure, data.for_hparams, hparams)

    def changed(self, *, fixed: Mapping[str, str] | None = None, **settings: object) -> Self:
        """Return a copy of the study with settings from the command line.

        Args:
            fixed: Hyperparameters that are not searched: name -> value as text.
            settings: Other attributes by name; None keeps an attribute unchanged. Labels are added to the study's own.

        Raises:
            StudyError: a setting is wrong.
            SpaceError: a fixed hyperparameter does not exist, or its value is outside its domain.
        """
        changes = {name: value for name, value in settings.items() if value is not None}
        if fixed:
            if not is_space(self.space):
                raise StudyError("cannot fix hyperparameters of a define-by-run space: change its function")
            changes["fixed"] = {**self.fixed, **parse_fixed(self.space, fixed)}
        if "labels" in changes:
            check_labels(changes["labels"])
            changes["labels"] = (*self.labels, *changes["labels"])  # pyright: ignore[reportGeneralTypeIssues]
        return dataclasses.replace(self, **changes)

    def record(self) -> dict[str, Any]:
        """Return the settings that make trials comparable, as plain JSON; they are recorded at the first launch."""
        return {
            "objective": list(self.objectives),
            "direction": list(self.all_directions),
            "epochs": self.epochs,
            "seed": self.seed,
            "space": describe_space(self.space, self.fixed),
            "optimizer_rules": OPTIMIZER_RULES,
            **({} if self.baseline is None else {"baseline": self.baseline_params}),
            **({} if self.trainer is not None else {"train": self.kind}),
            **({"constraints": {one.metric: str(one) for one in self.all_constraints}} if self.constraints else {}),
            **({"warm_start": list(self.warm_start)} if self.warm_start else {}),
            "value": self.value,
            **self.seed_plan.record(),
        }

    def check_unchanged(self, recorded: Mapping[str, object]) -> None:
        """Compare the settings with those recorded at the study's first launch. The number of trials may change.

        Raises:
            StudyChanged: a setting differs; the message names each difference.
            StudyError: a newer version of tuner created the study.
        """
        changes = self.changes_since(recorded)
        if changes:
            may_migrate = is_space(self.space) and all(change.startswith("space.") for change in changes)
            how = ", change the stored study (`tuner migrate`)," if may_migrate else ","
            raise StudyChanged(
                f"study {self.name!r} has changed since its first launch, so its trials cannot be compared: "
                f"{'; '.join(changes)}; change it back{how} or give the study a new name"
            )

    def changes_since(self, recorded: Mapping[str, object]) -> list[str]:
        """Describe each setting that differs from those recorded at the study's first launch.

        Raises:
            StudyError: a newer version of tuner created the study.
        """
        # Through JSON, because the stored record is JSON as well.
        mine = {"constraints": {}, "warm_start": [], **json.loads(json.dumps(self.record()))}
        rules = optimizer_rules_of(recorded)
        if rules > OPTIMIZER_RULES:
            raise StudyError(
                f"study {self.name!r} was created with a newer version of tuner (optimizer_rules={rules}, this version "
                f"supports {OPTIMIZER_RULES}): upgrade tuner"
            )
        # An older study keeps the optimizer rules with which it was started.
        theirs = {"constraints": {}, "warm_start": [], **with_rules(recorded), "value": value_epoch_of(recorded)}
        theirs["seeds"] = seeds_of(recorded)
        return differences(theirs, {**mine, "optimizer_rules": rules, "seeds": seeds_of(mine)})


def names_wrong_arguments(kind: type[_Spec]) -> type[_Spec]:
    """Make a class of studies refuse arguments with wrong names in words of its own; a class decorator."""
    initialise: Any = kind.__init__

    @functools.wraps(initialise)
    def checked(self: object, *given: object, **settings: object) -> None:
        _check_arguments(given, settings)
        initialise(self, **settings)

    setattr(kind, "__init__", checked)  # noqa: B010 (type checkers keep the signature of the class)
    return kind


def _check_arguments(given: Sequence[object], settings: Mapping[str, object]) -> None:
    """Check that the arguments of `Study` have names that it knows, and that none is missing.

    Args:
        given: Those without a name.
        settings: The others, by name.

    Raises:
        StudyError: an argument has no name, or an unknown one, or is missing.
    """
    fields = {field.name: field for field in dataclasses.fields(StudySpec)}
    if given:
        raise StudyError(f"Study takes its arguments by name, as in Study(name=..., trials=...): got {given[0]!r}")
    for name in settings:
        if name not in fields:
            raise StudyError(f"Study has no argument {name!r}{nearest(name, list(fields))}")
    needed = [
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    missing = [name for name in needed if name not in settings]
    if missing:
        raise StudyError(f"Study needs the argument{'s' if len(missing) > 1 else ''} {', '.join(map(repr, missing))}")


def trial_seed(study_seed: int, number: int, purpose: str) -> int:
    """Return a seed in [0, 2^31) for one purpose of one trial: the same in every process, unrelated for others."""
    digest = hashlib.sha256(f"{study_seed}/{number}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
