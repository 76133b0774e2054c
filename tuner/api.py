"""The Python interface: the names of `import tuner`, and `Study` with `run` and `launch`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tuner import errors
from tuner.errors import StudyFileError
from tuner.storage import AnyURL, open_storage
from tuner.study.command import Command
from tuner.study.objective import OptunaObjective
from tuner.study.space import Space, choice, int_uniform, log_uniform, uniform
from tuner.study.spec import StudySpec
from tuner.trial.handle import Trial

__all__ = [
    "Command",
    "OptunaObjective",
    "Space",
    "Study",
    "Trial",
    "choice",
    "errors",
    "int_uniform",
    "log_uniform",
    "open_storage",
    "uniform",
]


class Study(StudySpec):
    """A study: its search space, trainer, data, objective, budget and search settings.

    Its settings are the attributes of `tuner.study.StudySpec`, given by name.
    """

    def launch(self, **options: Any) -> None:
        """Run this study with several workers, as `tuner launch` does; progress goes to stderr.

        Workers import the running script again: assign the study to a variable, and call `launch` below
        `if __name__ == "__main__":`.

        Args:
            options: The attributes of `tuner.launch.LaunchOptions`, by name.

        Raises:
            StudyFileError: the running script is not a file, or does not define this study.
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
        launch(f"{path}:{variable}", LaunchOptions(**options))

    def run(self, storage: AnyURL | None = None) -> None:
        """Run this study with one worker in this process, as `tuner worker` does; progress goes to stderr.

        Args:
            storage: The storage's URL; `$TUNER_STORAGE`, else `sqlite:///tuner.db`, if None.

        Raises:
            TunerError: see `tuner.worker.run_worker`.
        """
        from tuner.trial import print_event
        from tuner.worker import run_worker

        file = getattr(sys.modules["__main__"], "__file__", None)
        run_worker(self, storage, file=file, say=print_event)
