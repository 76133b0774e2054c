"""The Python interface: the names of `import tuner`, and `Study` with `run` and `launch`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner import errors
from tuner.errors import StudyFileError, UsageError
from tuner.storage import AnyURL, open_storage, storage_url
from tuner.study.command import Command
from tuner.study.file import Settings, study_of
from tuner.study.objective import OptunaObjective
from tuner.study.source import is_importing
from tuner.study.space import Space, choice, int_uniform, log_uniform, uniform
from tuner.study.spec import Direction, StudySpec, names_wrong_arguments
from tuner.study.trial import Trial

if TYPE_CHECKING:
    import optuna

    from tuner.admin.opened_study import OpenedStudy
    from tuner.worker.ask import AskedTrial, Asking

__all__ = [
    "Command",
    "OptunaObjective",
    "Space",
    "Study",
    "Trial",
    "choice",
    "errors",
    "int_uniform",
    "load_state",
    "log_uniform",
    "open_storage",
    "open_study",
    "optimize",
    "uniform",
]


@names_wrong_arguments
class Study(StudySpec):
    """A study: its search space, trainer, data, objective, budget and search settings.

    Its settings are the attributes of `tuner.study.StudySpec`, given by name.
    """

    def launch(
        self,
        *,
        on: str | None = None,
        options: Mapping[str, str] | None = None,
        logs: str | None = None,
        detach: bool = False,
        **given: Any,
    ) -> None:
        """Run this study with several workers, as `tuner launch` does; progress goes to stderr.

        Workers import the running script again: assign the study to a variable, and call `launch` below
        `if __name__ == "__main__":`.

        Args:
            on: The engine that runs the workers, `slurm`, `kubernetes` or `ray`; this machine if None.
            options: Settings of the engine by name, such as `{"partition": "gpu"}`.
            logs: With Slurm: the folder for the workers' logs; `tuner-logs` if None.
            detach: With `on`: return after the submission.
            given: The attributes of `tuner.launch.LaunchOptions`, by name.

        Raises:
            StudyFileError: the running script is not a file, or does not define this study.
            UsageError: `options`, `logs` or `detach` without `on`.
            TunerError: see `tuner.launch.launch`.
        """
        from tuner.launch import LaunchOptions, launch

        main = sys.modules["__main__"]
        path = getattr(main, "__file__", None)
        variable = next((key for key, value in vars(main).items() if value is self), None)
        if path is None or variable is None or Path(path).name == "__main__.py":
            raise StudyFileError(
                f"cannot launch study {self.name!r} from {path}: workers import the running script, so it must assign "
                "the study to a variable and call launch() below `if __name__ == '__main__':`; call run() instead for "
                "one worker in this process"
            )
        target = f"{path}:{variable}"
        if on is None:
            if options or logs or detach:
                raise UsageError(
                    "`options`, `logs` and `detach` have no effect without `on`: pass a cluster, such as slurm"
                )
            launch(target, LaunchOptions(**given))
            return
        if given.get("live") is not None:
            raise UsageError("`live` has no effect with `on`: leave it out, and run `tuner watch STUDY` on a terminal")
        from tuner.launch import engines
        from tuner.launch.engines.follow import tell_progress

        plan = engines.make_plan(
            target, LaunchOptions(**given), engines.JobOptions(on=on, options=options or {}, logs=logs)
        )
        engines.launch_on(plan, None if detach else tell_progress())

    def ask(self, storage: AnyURL | None = None) -> AskedTrial | None:
        """Return a trial for a loop of your own; end it with `tell`.

        This process holds the trial until then. If the process ends before, another call of `ask` gets the trial, with
        the same number and hyperparameters.

        Args:
            storage: The storage's URL; `$TUNER_STORAGE`, else `sqlite:///tuner.db`, if None. Only the first call uses
                it.

        Returns:
            The trial, with its hyperparameters as `trial.hparams`; None if the budget is used up, or the rest of it was
            asked for here and not told yet.

        Raises:
            TunerError: see `tuner.worker.run_worker`.
        """
        return self._asking(storage).ask()

    def tell(self, trial: AskedTrial, value: object = None, *, error: BaseException | None = None) -> None:
        """End a trial that `ask` returned.

        Args:
            trial: The trial.
            value: The value of the objective, or metrics by name; by default those of the last report.
            error: The error that made the trial fail.

        Raises:
            StudyError: the trial was not asked for here, or was told before; or there is no value.
            LeaseLost: another worker has the trial.
        """
        self._asking(None).tell(trial, value, error=error)

    def _asking(self, storage: AnyURL | None) -> Asking:
        from tuner.worker.ask import Asking

        found: Asking | None = self.__dict__.get("_asker")
        if found is None:
            found = Asking(self, storage)
            object.__setattr__(self, "_asker", found)
        return found

    def run(self, storage: AnyURL | None = None, *, trials: int | None = None) -> OpenedStudy:
        """Run this study with one worker in this process, as `tuner worker` does.

        Progress goes to stderr; a notebook shows a bar with the counts, the best value and the current trial.

        Args:
            storage: The storage's URL; `$TUNER_STORAGE`, else `sqlite:///tuner.db`, if None.
            trials: The total number of trials, including those of earlier runs; the study's own number if None.

        Returns:
            The study as `open_study` returns it.

        Raises:
            StudyError: `trials` is less than 1.
            TunerError: see `tuner.worker.run_worker`.
        """
        from tuner.admin.notebook import NotebookProgress, is_in_notebook
        from tuner.admin.opened_study import OpenedStudy
        from tuner.trial import print_event
        from tuner.worker import run_worker

        url = storage_url(storage)
        file = getattr(sys.modules["__main__"], "__file__", None)
        say = NotebookProgress(self.name, url) if is_in_notebook() else print_event
        run_worker(self.changed(trials=trials), url, file=file, say=say)
        return OpenedStudy(self.name, url)


def optimize(
    objective: Callable[[optuna.Trial], Any],
    *,
    name: str,
    trials: int,
    direction: Direction | None = None,
    directions: Sequence[Direction] | None = None,
    workers: int = 1,
    storage: AnyURL | None = None,
    sampler: Any = None,
    pruner: Any = None,
    seed: int | None = None,
) -> optuna.Study:
    """Run an Optuna objective, as `tuner launch FILE:NAME` does; progress goes to stderr.

    One worker runs in this process. Several workers are processes that import the file of the objective, which must
    then be a function at the top level of a file, and this call must be below `if __name__ == "__main__":`.

    Args:
        objective: A function of an `optuna.Trial`, as for `optuna.Study.optimize`.
        name: The study's name in the storage.
        trials: The total number of trials.
        direction: `"minimize"` or `"maximize"`; by default `"minimize"`, as in Optuna.
        directions: The directions of several objectives.
        workers: The number of workers.
        storage: The storage's URL; `$TUNER_STORAGE`, else `sqlite:///tuner.db`, if None.
        sampler: A sampler's name, a mapping with its options or, for one worker, an Optuna sampler; by default TPE.
        pruner: A pruner, likewise; by default Optuna's median pruner.
        seed: The study's seed.

    Returns:
        The study, as `optuna.load_study` returns it.

    Raises:
        StudyError: a setting is wrong.
        StudyFileError: several workers cannot import the objective.
        TunerError: see `tuner.launch.launch`.
    """
    import optuna

    given = tuple(directions or (direction or "minimize",))
    settings = Settings(
        name=name, directions=given, trials=trials, more={"sampler": sampler, "pruner": pruner, "seed": seed}
    )
    main = sys.modules["__main__"]
    if is_importing():
        raise StudyFileError(
            "the file calls tuner.optimize when a worker imports it: put the call below `if __name__ == '__main__':`"
        )
    study = study_of(objective, settings)  # checks the settings
    if workers == 1:
        from tuner.trial import print_event
        from tuner.worker import run_worker

        path, function = _place_of(objective)
        file = path or getattr(main, "__file__", None)
        run_worker(study, storage, file=file, function=function, say=print_event)
    else:
        from tuner.launch import LaunchOptions, launch

        options = LaunchOptions(
            storage=storage,
            workers=workers,
            trials=trials,
            seed=seed,
            name=name,
            directions=given,
            sampler=sampler,
            pruner=pruner,
        )
        launch(_target_of(objective), options)
    return optuna.load_study(study_name=name, storage=open_storage(storage_url(storage)))


def _target_of(function: Callable[..., Any]) -> str:
    """Return `FILE:NAME` of a function that workers can import."""
    path, name = _place_of(function)
    if name is None:
        given = getattr(function, "__qualname__", function)
        raise StudyFileError(
            f"several workers import the objective, so it must be a function at the top level of a Python file: got "
            f"{given} of {path or 'no file'}; pass workers=1 to run it in this process"
        )
    return f"{path}:{name}"


def _place_of(function: Callable[..., Any]) -> tuple[str | None, str | None]:
    """Return the file of a function, and its name if it is at the top level of the file."""
    module = sys.modules.get(function.__module__)
    path, name = getattr(module, "__file__", None), getattr(function, "__qualname__", "")
    return path, name if path is not None and getattr(module, name, None) is function else None


def open_study(name: str, storage: AnyURL | None = None) -> OpenedStudy:
    """Return a study in a storage: its trials, best trial, curves, plots and models, and ways to change it.

    Args:
        name: The study's name.
        storage: The storage's URL; `$TUNER_STORAGE`, else `sqlite:///tuner.db`, if None.

    Raises:
        UnknownStudy: there is no such study.
        StorageLost: the database cannot be reached.
    """
    from tuner.admin.opened_study import OpenedStudy
    from tuner.storage import connected
    from tuner.storage.read.queries import find_study

    url = storage_url(storage)
    with connected(url) as engine:
        find_study(engine, name)
    return OpenedStudy(name, url)


def load_state(path: str | Path, like: Any = None) -> Any:
    """Return the state that a training function has saved with `trial.save`, after its trial has ended.

    Args:
        path: The folder that `tuner show STUDY NUMBER` prints as `checkpoint`, or its URL in object storage, which is
            copied to the user's cache folder; or `checkpoint` in a bundle.
        like: See `tuner.Trial.restore`.

    Returns:
        The pytree, or the path of the copied file or folder.

    Raises:
        CheckpointError: there is no saved state, it is damaged, or it has another structure than `like`.
        ArtifactsLost: the object storage cannot be reached.
    """
    from tuner.object_storage import fetched
    from tuner.worker.trainables.saves import load_state

    return load_state(fetched(path), like)
