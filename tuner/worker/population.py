"""Population-based training: offers the states of running trials to each other, and takes copies of them."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import shutil
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import Engine

from tuner.errors import CheckpointError, StorageLost, TunerError
from tuner.output.log import tell
from tuner.search.population import PopulationPruner
from tuner.storage.artifacts import StudyArtifacts
from tuner.storage.read.population import read_members
from tuner.storage.read.queries import find_study, read_numbers
from tuner.study import StudySpec, trial_seed
from tuner.study.domains import Domain, Stored, parameters
from tuner.study.population import Copy, Member, Stretch, copied_domains, explored, leaders_of, ranked, truncated
from tuner.study.space import Space, is_space, to_params

if TYPE_CHECKING:
    from tuner.training.saved.files import Content

FOLDER = "population"
"""The folder of a study with the states that its trials offer."""


class Take(Protocol):
    """Lets a training continue with something else; see `Training.continue_with`."""

    def __call__(self, hparams: Any, *, state: Mapping[str, Any] | None = None, seed: int | None = None) -> None: ...


class Others(Protocol):
    """The population of a running trial."""

    def is_due(self, epoch: int) -> bool:
        """Return whether the trial is compared with others after this epoch."""
        ...

    def offer(self, epoch: int, hparams: Any, state: dict[str, Any]) -> None:
        """Offer the state after an epoch, before its report is stored.

        Args:
            epoch: The epoch.
            hparams: The hyperparameters.
            state: The state, as `Training.saved_state` returns it.
        """
        ...

    def withdraw(self, epoch: int) -> None:
        """Withdraw the state after an epoch, because the trial has ended with it."""
        ...

    def compare(self, epoch: int, value: float, take: Take) -> None:
        """Compare the trial with the others after its report; if it is among the last, take a copy of another.

        Args:
            epoch: The epoch.
            value: The objective that the trial has reported for it.
            take: Lets the training continue with the copy.
        """
        ...


class Population:
    """The states that the trials of a study offer, as this worker sees them: its own in memory, others in files.

    A trial is compared with the trials that have the same static hyperparameters, because a state fits no other model.

    Args:
        study: The study; its pruner is a `PopulationPruner`.
        study_id: Its id in the storage.
        engine: The storage's engine.
        artifacts: Where the files of the study are.
    """

    def __init__(self, study: StudySpec, study_id: int, engine: Engine, artifacts: StudyArtifacts) -> None:
        pruner = study.make_pruner()
        assert isinstance(pruner, PopulationPruner)
        assert is_space(study.space)
        self.study, self.settings, self._engine, self._study_id = study, pruner, engine, study_id
        self._artifacts, self._folder = artifacts, artifacts.folder / FOLDER
        domains = {name: domain for name, domain, _ in parameters(study.space) if name not in study.fixed}
        self.domains: dict[str, Domain] = copied_domains(domains)
        self._static = sorted(domains.keys() - self.domains.keys())
        self._kept: dict[tuple[int, int], Content] = {}  # by epoch and trial
        self._statics: dict[int, tuple[Stored, ...]] = {}  # by trial
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="population")
        self._told = ""

    @property
    def maximize(self) -> bool:
        """Whether larger objectives are better."""
        return self.study.all_directions[0] == "maximize"

    # --- The order

    def order(self, epoch: int, own: Member) -> list[int]:
        """Return the trials with the same static hyperparameters that have reached an epoch, best first.

        Raises:
            StorageLost: the database cannot be reached.
        """
        members = {one.number: one for one in read_members(self._engine, self._study_id, epoch)}
        members[own.number] = own
        if self._static:
            self._read_statics(members.keys() - self._statics.keys())
            mine = self._statics[own.number]
            members = {number: one for number, one in members.items() if self._statics[number] == mine}
        return ranked(list(members.values()), maximize=self.maximize)

    def _read_statics(self, numbers: Collection[int]) -> None:
        if numbers:
            row = find_study(self._engine, self.study.name)
            for trial in read_numbers(self._engine, row, sorted(numbers)):
                self._statics[trial.number] = tuple(trial.hparams.get(name) for name in self._static)

    # --- The states

    def offer(self, epoch: int, number: int, hparams: Space, state: dict[str, Any]) -> None:
        """Keep a state in memory until the trial has been compared."""
        from tuner.training.saved.files import Content

        record = {"epoch": epoch, "trial": number, "hparams": to_params(hparams)}
        self._kept[epoch, number] = Content(epoch, state, record)

    def withdraw(self, epoch: int, number: int) -> None:
        """Forget a state that was kept in memory."""
        self._kept.pop((epoch, number), None)

    def settle(self, epoch: int, number: int, order: Sequence[int]) -> None:
        """Write the state of a trial that was compared, if it is good enough to be copied; remove what is not.

        Args:
            epoch: The epoch.
            number: The trial.
            order: All trials of the comparison, best first.
        """
        wanted = set(order[: max(1, truncated(self.settings.quantile, self.study.trials))])
        if number not in wanted:
            self.withdraw(epoch, number)
        self._writer.submit(self._settle, epoch, number, frozenset(order) - wanted)

    def _settle(self, epoch: int, number: int, unwanted: frozenset[int]) -> None:
        from tuner.training.saved import files

        content = self._kept.get((epoch, number))
        store = self._artifacts.store
        try:
            if content is not None:
                files.add(self._place(epoch, number), content, keep=1)
                if store is not None:
                    store.upload(self._place(epoch, number), self._key(epoch, number))
            for other in unwanted & self._offered(epoch):
                shutil.rmtree(self._place(epoch, other), ignore_errors=True)
                if store is not None:
                    store.remove(self._key(epoch, other))
        except Exception as error:  # also TensorStore's; the trial is then copied by none
            self._tell(f"cannot offer the state of trial {number} to other trials: {files.one_line(error)}")
        finally:
            self.withdraw(epoch, number)

    def _tell(self, message: str) -> None:
        if message.partition(": ")[2] != self._told:
            tell(message, "population", "warning")
        self._told = message.partition(": ")[2]

    def find(self, epoch: int, number: int) -> Content | None:
        """Return the state that a trial offers for an epoch; None if there is none."""
        from tuner.training.saved import files

        kept = self._kept.get((epoch, number))
        if kept is not None:
            return kept
        place, store = self._place(epoch, number), self._artifacts.store
        here = files.newest_good(place, files.load, lambda path, error: None)
        if here is not None or store is None:
            return here
        with contextlib.suppress(TunerError, OSError):
            store.download(self._key(epoch, number), place, store.sizes(self._key(epoch, number)))
        return files.newest_good(place, files.load, lambda path, error: None)

    def _offered(self, epoch: int) -> set[int]:
        folder = self._folder / str(epoch)
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        if self._artifacts.store is not None:
            names += self._artifacts.store.names(f"{self._artifacts.key}/{FOLDER}/{epoch}")
        return {int(name) for name in names if name.isdecimal()}

    def _place(self, epoch: int, number: int) -> Path:
        return self._folder / str(epoch) / str(number)

    def _key(self, epoch: int, number: int) -> str:
        return f"{self._artifacts.key}/{FOLDER}/{epoch}/{number}"

    # --- Ends

    def remove(self) -> None:
        """Remove all states, because all trials have ended."""
        self.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._artifacts.store is not None:
            with contextlib.suppress(TunerError):
                self._artifacts.store.remove(f"{self._artifacts.key}/{FOLDER}")

    def close(self) -> None:
        """Wait until all states are written."""
        self._writer.shutdown()


class TrialInPopulation(Protocol):
    """What a population needs to know of a running trial."""

    @property
    def number(self) -> int: ...

    def may_copy(self) -> bool:
        """Return whether it may copy others; the baseline may not."""
        ...

    def copies(self) -> list[Copy]:
        """Return the copies that the trial has taken."""
        ...

    def set_copies(self, copies: Sequence[Copy]) -> None:
        """Store the copies that the trial has taken; waits for the database."""
        ...

    def note_copy(self, copy: Copy) -> None:
        """Report that a copy was taken."""
        ...


@dataclasses.dataclass(frozen=True)
class RunningMember:
    """The population of a trial that a worker runs; implements `Others`."""

    population: Population
    trial: TrialInPopulation

    def is_due(self, epoch: int) -> bool:
        epochs = self.population.study.epochs
        assert epochs is not None
        return epoch % self.population.settings.every == 0 and epoch < epochs

    def offer(self, epoch: int, hparams: Any, state: dict[str, Any]) -> None:
        self.population.offer(epoch, self.trial.number, hparams, state)

    def withdraw(self, epoch: int) -> None:
        self.population.withdraw(epoch, self.trial.number)

    def compare(self, epoch: int, value: float, take: Take) -> None:
        population, number = self.population, self.trial.number
        try:
            order = population.order(epoch, Member(number, value))
        except StorageLost:  # the training does not wait for the database
            self.withdraw(epoch)
            return
        self._copy(epoch, order, take)
        population.settle(epoch, number, order)  # last: it may remove the state that was copied

    def _copy(self, epoch: int, order: Sequence[int], take: Take) -> None:
        population, number = self.population, self.trial.number
        rng = random.Random(trial_seed(population.study.seed, number, f"population-{epoch}"))
        earlier = {copy.epoch: copy for copy in self.trial.copies()}
        before = earlier.pop(epoch, None)  # of an attempt that ended before it had saved the copied state
        leaders = list(leaders_of(number, order, population.settings.quantile)) if self.trial.may_copy() else []
        for leader in rng.sample(leaders, len(leaders)) if before is None else [before.trial]:
            found = population.find(epoch, leader)
            if found is None:  # it is not written yet, or its worker has died
                continue
            copy = before or Copy(epoch, leader, self._explored(found, rng))
            self.trial.set_copies([*earlier.values(), copy])
            try:
                take(population.study.hparams_of(copy.hparams), state=found.plain)
            except CheckpointError:  # the study's file has changed since
                continue
            self.trial.note_copy(copy)
            return
        if self.trial.copies() != list(earlier.values()):
            self.trial.set_copies(list(earlier.values()))

    def _explored(self, found: Content, rng: random.Random) -> dict[str, Stored]:
        return explored(self.population.domains, found.record["hparams"], self.population.settings, rng)


@dataclasses.dataclass(frozen=True)
class ReplayedMember:
    """The population of a training that repeats the lineage of a trial; implements `Others`.

    Args:
        study: The study.
        stretches: The lineage, see `tuner.study.population.lineage`.
        reseed: Whether each stretch has the random numbers of its own trial.
    """

    study: StudySpec
    stretches: Sequence[Stretch]
    reseed: bool

    def is_due(self, epoch: int) -> bool:
        return any(stretch.last == epoch for stretch in self.stretches)

    def offer(self, epoch: int, hparams: Any, state: dict[str, Any]) -> None:
        pass

    def withdraw(self, epoch: int) -> None:
        pass

    def compare(self, epoch: int, value: float, take: Take) -> None:
        stretch = next(one for one in self.stretches if one.first == epoch + 1)
        seed = trial_seed(self.study.seed, stretch.trial, "training") if self.reseed else None
        take(self.study.hparams_of(stretch.hparams), seed=seed)
