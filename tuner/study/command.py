"""A command that trains one trial: `Study(train=Command("python train.py --lr {learning_rate}"))`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tuner.errors import StudyError, is_number, nearest

_PART = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
OWN_NAMES = ("folder", "number", "seed")
"""Names in braces that are not hyperparameters."""


@dataclass(frozen=True)
class Command:
    """A command that trains one trial and prints its metrics.

    Names in braces are replaced: a hyperparameter's name by its value, `{folder}` by the trial's own folder, `{number}`
    by the trial's number, and `{seed}` by its seed. Write `{{` and `}}` for braces.

    The command prints a JSON object on a line of its own after each epoch, such as `{"epoch": 3, "accuracy": 0.91}`;
    `epoch` and `step` are optional. All other output goes to the trial's log. It also finds the hyperparameters in the
    environment: `TUNER_HPARAMS` has them as JSON, `TUNER_FOLDER`, `TUNER_NUMBER` and `TUNER_SEED` the rest.

    If the trial is pruned, passes a limit of time, or the worker must stop, the command and all processes that it
    started get SIGTERM, and SIGKILL `grace_s` seconds later. A command that finds its own files in `{folder}` can
    resume from them.

    Attributes:
        line: The command as a text, which is split into words as a shell does, or as a list of words.
        shell: Run the text with `/bin/sh`, for pipes and variables; values are quoted.
        grace_s: Seconds between SIGTERM and SIGKILL; >= 0.

    Raises:
        StudyError: the command is empty, or has a brace that is not closed.
    """

    line: str | Sequence[str]
    shell: bool = False
    grace_s: float = 4.0

    def __post_init__(self) -> None:
        if not is_number(self.grace_s) or not self.grace_s >= 0:
            raise StudyError(f"grace_s must be a number of seconds, at least 0: got {self.grace_s!r}")
        if not isinstance(self.line, str) and not (
            isinstance(self.line, Sequence) and all(isinstance(word, str) for word in self.line)
        ):
            raise StudyError(f"a command must be a text, or a list of words: got {self.line!r}")
        if self.shell and not isinstance(self.line, str):
            raise StudyError(f"a command for a shell must be a text: got {self.line!r}")
        if not self._texts():
            raise StudyError("a command must have at least one word: got none")
        self.names()

    def _texts(self) -> list[str]:
        """Return the words, or the line for the shell."""
        if not isinstance(self.line, str):
            return list(self.line)
        if self.shell:
            return [self.line] if self.line.strip() else []
        try:
            return shlex.split(self.line)
        except ValueError as error:
            raise StudyError(f"the command cannot be split into words ({error}): {self.line!r}") from None

    def names(self) -> list[str]:
        """Return the names in braces."""
        return [name for text in self._texts() for name in _names(text)]

    def check_names(self, known: Iterable[str]) -> None:
        """Check that each name in braces is known.

        Raises:
            StudyError: one is not.
        """
        allowed = [*known, *OWN_NAMES]
        for name in self.names():
            if name not in allowed:
                raise StudyError(
                    f"the command uses {{{name}}}, which is not a hyperparameter of every trial: it can use "
                    f"{', '.join(allowed)}{nearest(name, allowed)}; read conditional ones from $TUNER_HPARAMS, and "
                    "write {{ and }} for braces"
                )

    def words(self, values: Mapping[str, object]) -> list[str]:
        """Return the words to run, with these values by name.

        Raises:
            StudyError: there is no value for a name in braces.
        """
        texts = {name: value if isinstance(value, str) else repr(value) for name, value in values.items()}
        if self.shell:
            quoted = {name: shlex.quote(text) for name, text in texts.items()}
            return ["/bin/sh", "-c", _filled(self._texts()[0], quoted)]
        return [_filled(text, texts) for text in self._texts()]


def _names(text: str) -> list[str]:
    found: list[str] = []
    for match in _PART.finditer(text):
        if match.group() in "{}":
            raise StudyError(f"the command has a single {match.group()!r} in {text!r}: write {{{{ and }}}} for braces")
        if match.group(1) is not None:
            found.append(match.group(1))
    return found


def _filled(text: str, texts: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name is None:
            return match.group()[0]
        if name not in texts:
            raise StudyError(
                f"the command uses {{{name}}}, which this trial does not have: it has {', '.join(texts)}; read "
                "conditional ones from $TUNER_HPARAMS"
            )
        return texts[name]

    return _PART.sub(value, text)
