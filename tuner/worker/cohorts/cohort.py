"""Runs several trials of a worker together: their trainings share one program, each in a lane of it.

Each trial is an ordinary `Attempt` on a thread of its own. The threads take turns, so that only one of them runs. When
all of them wait, the worker's thread does what they wait for, for all of them at once: it stores their hyperparameters,
reports, decisions in rungs or ends in one transaction each, and runs the program of all lanes.

A trial with several seeds has a lane for each. It gets all its lanes at once and keeps them to its end, so no trial
waits for lanes while it holds some. Its seeds train on threads of their own, which also take turns.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from tuner.errors import TunerError
from tuner.output.log import set_about
from tuner.storage.sql.background_calls import Background
from tuner.storage.worker.fences import Lease
from tuner.study.launch_record import OPTIMIZER_RULES
from tuner.training.definition import TrainerDefinition
from tuner.training.loop.execution import First, Solo
from tuner.training.loop.lanes import MOST_LANES, Lane, Lanes, Task, best_count, program_key
from tuner.training.loop.modes import Choose, alone
from tuner.trial import optuna_private as private
from tuner.trial.events import CohortChosen
from tuner.trial.failures import last_line
from tuner.worker.attempts.attempt import Attempt, Ended
from tuner.worker.cohorts.calls import Answer, Calls, Gatherer, Together, make_together
from tuner.worker.cohorts.meeting import Meeting, Participant, current
from tuner.worker.context import WorkerContext
from tuner.worker.runtime import Compiled, Runtime
from tuner.worker.time_use import TimeUse
from tuner.worker.trainables.train_module import ModuleTrainable

if TYPE_CHECKING:
    from tuner.training.data.feed import Feed
    from tuner.training.loop.execution import Execution
    from tuner.training.pytree import PyTree

T = TypeVar("T")
_LAST_CALLS_S = 3.0
"""Seconds that a worker which gives back its trials waits for their calls to the database, for all together."""


class TrialLeft(TunerError):
    """The worker gives back a trial of a cohort."""


class ProgramFailed(TunerError):
    """The program of several lanes failed, which says nothing about a single trial.

    Attributes:
        is_out_of_memory: Whether so many lanes do not fit.
    """

    def __init__(self, message: str, is_out_of_memory: bool) -> None:
        super().__init__(message)
        self.is_out_of_memory = is_out_of_memory


class CannotShare(TunerError):
    """The trials cannot train in one program."""


# --- What a trial asks for


@dataclass(frozen=True)
class Join:
    """A lane of the program that this training needs."""

    key: Hashable
    trainer: TrainerDefinition
    hparams: PyTree
    feed: Feed


@dataclass(frozen=True)
class Tasks:
    """Tasks of a lane, and the result of the last."""

    lane: int
    tasks: Sequence[Task]


@dataclass(frozen=True)
class Gather:
    """The ends of threads that train the seeds of the trial."""

    threads: Sequence[Participant]


# --- What a trial has of its own


@dataclass
class _OwnClock:
    total_s: float = 0.0
    count: int = 0
    fetched: int = 0
    saved_s: float = 0.0

    def add(self, more: Compiled) -> None:
        self.total_s += more.total_s
        self.count += more.count
        self.fetched += more.fetched
        self.saved_s += more.saved_s


class _OwnRuntime:
    """The worker's runtime with a clock for one trial."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime, self.clock = runtime, _OwnClock()
        self.layout, self.device_count = runtime.layout, runtime.device_count
        self.versions, self.is_out_of_memory = runtime.versions, runtime.is_out_of_memory

    def tidy(self) -> None:
        pass  # the other trials need their programs


class _Alone(Solo):
    """The execution of a trial that is the only one of its cohort."""

    def __init__(
        self,
        trainer: TrainerDefinition,
        hparams: PyTree,
        feed: Feed,
        choose: Choose,
        leave: Callable[[], None],
    ) -> None:
        super().__init__(trainer, hparams, feed, layout=feed.layout, choose=choose, agree=alone)
        self._leave = leave

    def close(self) -> None:
        self._leave()


@dataclass
class _Trial:
    """A trial of the cohort.

    Attributes:
        lease: The claim on it.
        attempt: Runs it; None before its first turn.
        ended: How it ended; None before, and if it was given back.
        place: The number of its place in the cohort; None while it waits for one, or has left it.
        lanes: The lanes of its place that its trainings use.
        unused: The other lanes of its place.
        count: The number of lanes of its program.
        clock: Its compilations.
    """

    lease: Lease
    clock: _OwnClock
    attempt: Attempt | None = None
    ended: Ended | None = None
    place: int | None = None
    lanes: set[int] = field(default_factory=set[int])
    unused: list[int] = field(default_factory=list[int])
    count: int = 1


@dataclass
class Cohort:
    """The trials that a worker runs together.

    Args:
        context: The context of the worker's trials.
        asked: The number of trials that train together, or `auto`.
        choose: Looks up how a program runs, or measures it.
        claim: Claims up to so many trials; returns none if there are none now.
        ended: Called with each trial that has ended or was given back, and its error if it raised one.
    """

    context: WorkerContext
    asked: int | Literal["auto"]
    choose: Choose
    claim: Callable[[int], list[Lease]]
    ended: Callable[[Lease, Ended | None, BaseException | None], None]
    meeting: Meeting = field(default_factory=Meeting)

    def __post_init__(self) -> None:
        self._trials: dict[Participant, _Trial] = {}  # by the thread of the attempt
        self._owners: dict[Participant, Participant] = {}  # of a thread of a seed: the thread of its trial
        self._calls: Calls = []
        assert isinstance(self.context.background, Background)
        self._gatherer = Gatherer(self.context.background)
        self._tasks: dict[Participant, deque[Task]] = {}
        self._lanes: Lanes | None = None
        self._key: Hashable = None
        self._width = self.context.study.seed_plan.most  # lanes of a trial
        self._most = min(self.context.study.trials, MOST_LANES if self.asked == "auto" else self.asked)
        self.size = 1 if self.asked == "auto" else self._most
        self._free: list[int] = list(range(self.size))
        self._clock = self.context.runtime.clock
        self._compiled = Compiled.read(self._clock)
        self._said = 0
        self.has_stopped = False  # whether the sampler has ended the search
        self._passed = 0  # trials that have got a lane while others waited for other lanes

    @property
    def is_empty(self) -> bool:
        """Whether it has no trials."""
        return not self._trials

    def run(self) -> None:
        """Go on until the next time that trials may be claimed.

        Raises:
            Exception: an error of the worker, not of a trial; all trials have been given back.
        """
        try:
            self._fill()
            self._take_turns()
            if self._trials:
                self._serve()
        except BaseException:
            self.give_back()
            raise

    def halve(self) -> bool:
        """Train half as many trials at once from now on; return whether that is possible."""
        self._most = self.size = self.size // 2
        self._lanes, self._key, self._free = None, None, list(range(self.size))
        self.asked = self.size
        return self.size > 0

    def give_back(self) -> None:
        """Give back all trials, because the worker cannot go on with them."""
        with contextlib.suppress(Exception):  # there is one already
            self._finish_calls()
        while self._trials:
            for participant in self.meeting.participants:
                if isinstance(participant.request, Gather):  # closes its trainings when their threads have ended
                    self._gather(participant)
                elif participant.request is not None:
                    participant.answer(error=TrialLeft("the worker gives back its trials"))
            with contextlib.suppress(Exception):  # there is one already
                self._take_turns()

    # --- Trials

    def _fill(self) -> None:
        others = len(self._others())
        if not others:
            self._passed = 0
        # A trial that needs another program waits until as many others as there are lanes have gone ahead.
        if others >= self.size or self._passed >= self.size or self.context.stop.requested or self.has_stopped:
            return
        free = self.size - (len(self._trials) - others)
        if free > 0:
            for lease in self.claim(free):
                self._start(lease)

    def _start(self, lease: Lease) -> None:
        runtime = _OwnRuntime(self.context.runtime)
        trial = _Trial(lease, runtime.clock)

        def run(participant: Participant) -> None:
            set_about(trial=lease.number)
            trial.attempt = Attempt(self._context_of(participant, trial, runtime), lease)
            trial.ended = trial.attempt.run()

        self._trials[self.meeting.start(f"trial-{lease.number}", run)] = trial
        self.context.renewals.add(lease)  # its first turn may be a while off

    def _context_of(self, participant: Participant, trial: _Trial, runtime: Any) -> WorkerContext:
        context = self.context
        assert isinstance(context.trainable, ModuleTrainable)

        def execute(trainer: TrainerDefinition, hparams: PyTree, feed: Feed) -> Execution:
            assert trial.attempt is not None
            key = program_key(trainer, hparams, feed), trial.attempt.epochs
            lanes, lane = ask(Join(key, trainer, hparams, feed))
            leave = partial(self._leave, trial, lane)
            if lanes.count == 1:  # the same program without lanes is faster
                return _Alone(trainer, hparams, feed, self.choose, leave)
            return Lane(lanes, lane, hparams, meet, leave)

        def meet(lane: int, tasks: Sequence[Task]) -> Any:
            return ask(Tasks(lane, tasks))

        def ask(request: object) -> Any:
            assert trial.attempt is not None
            with trial.attempt.watchdog.idle():
                answer = current().ask(request)
            set_about(trial=trial.lease.number)
            return answer

        def together(calls: Sequence[Callable[[], T]]) -> list[T]:
            if len(calls) < 2:
                return [call() for call in calls]
            results: dict[int, T] = {}
            threads = [self._start_seed(participant, trial, results, at, call) for at, call in enumerate(calls)]
            ask(Gather(threads))
            for thread in threads:
                if thread.error is not None:
                    raise thread.error
            return [results[at] for at, _ in enumerate(calls)]

        return dataclasses.replace(
            context,
            trainable=context.trainable.in_lane(execute, together),
            background=Together(ask, self._calls),
            gatherer=self._gatherer,
            is_cohort=True,
            place=dataclasses.replace(context.place, runtime=runtime),
            time_use=TimeUse({}, clock=lambda: 0.0),  # the worker's thread measures
            lanes=lambda: trial.count,
        )

    def _start_seed(
        self, owner: Participant, trial: _Trial, results: dict[int, T], at: int, call: Callable[[], T]
    ) -> Participant:
        """Start a thread that makes a call for a trial."""

        def run(_: Participant) -> None:
            assert trial.attempt is not None
            set_about(trial=trial.lease.number)
            with trial.attempt.watchdog.busy():
                results[at] = call()

        thread = self.meeting.start(f"trial-{trial.lease.number}-{at}", run)
        self._owners[thread] = owner
        return thread

    def _trial_of(self, participant: Participant) -> _Trial:
        return self._trials[self._owners.get(participant, participant)]

    def _take_turns(self) -> None:
        over = self.meeting.take_turns(lambda one: self._after_turn(self._trial_of(one)))
        set_about(trial=None)
        for participant in over:
            self._tasks.pop(participant, None)
        ended = [(self._trials.pop(one), one.error) for one in over if self._owners.pop(one, None) is None]
        errors: list[BaseException] = []
        for trial, error in ended:
            self.context.claimant.held.discard(trial.lease.trial_id)
            for lane in list(trial.lanes):  # of trainings that could not begin
                self._leave(trial, lane)
            try:
                self.ended(trial.lease, trial.ended, None if isinstance(error, TrialLeft) else error)
            except BaseException as raised:
                errors.append(raised)
        if errors:
            raise errors[0]

    def _leave(self, trial: _Trial, lane: int) -> None:
        if lane not in trial.lanes:
            return
        if self._lanes is not None:
            self._lanes.leave(lane)
        trial.lanes.discard(lane)
        trial.unused.append(lane)
        if not trial.lanes and trial.place is not None:
            self._free.append(trial.place)
            trial.place = None

    def _after_turn(self, trial: _Trial) -> None:
        self._note_compiled(trial)
        # The next trial that asks its sampler forgets this.
        self.has_stopped = self.has_stopped or private.has_stopped(self.context.optuna_study)

    def _note_compiled(self, trial: _Trial) -> None:
        """Count what was compiled since the last call for a trial."""
        now = Compiled.read(self._clock)
        trial.clock.add(now.since(self._compiled))
        self._compiled = now

    def _waiting(self) -> list[Participant]:
        """Return the trials that wait for a lane, oldest first."""
        return [one for one in self.meeting.participants if isinstance(one.request, Join)]

    def _others(self) -> set[int]:
        """Return the numbers of the trials that wait for lanes of another program than the present one."""
        return {self._trial_of(one).lease.number for one in self._waiting() if one.request.key != self._key}

    # --- What they wait for

    def _serve(self) -> None:
        """Do something of what the trials wait for."""
        self._call()
        gathered = [self._gather(one) for one in self.meeting.participants if isinstance(one.request, Gather)]
        if any(gathered) or self._answer() or self._join():
            return
        self._do_tasks()

    def _gather(self, participant: Participant) -> bool:
        """Let a trial go on if the threads of its seeds have ended; return whether it does."""
        is_over = all(thread.is_over for thread in participant.request.threads)
        if is_over:
            participant.answer()
        return is_over

    def _call(self) -> None:
        """Make the calls to the database that trials have submitted, on the background thread."""
        if not self._calls:
            return
        calls, self._calls[:] = list(self._calls), []
        enter = partial(self.context.storage.enter_rungs, self.context.study_id)
        self.context.background.submit(partial(make_together, calls, enter, self.context.must_end))

    def _answer(self) -> bool:
        """Wait for the calls that trials wait for; return whether there were any."""
        asked = [(one, one.request) for one in self.meeting.participants if isinstance(one.request, Answer)]
        began_s = time.monotonic()
        # The limits run at the same time for all.
        for participant, wanted in reversed(asked):
            spent_s = time.monotonic() - began_s
            self.context.background.wait(
                wanted.future, wanted.database_s - spent_s, wanted.seconds - spent_s, wanted.is_over
            )
            participant.answer()
        return bool(asked)

    def _finish_calls(self) -> None:
        """Wait a moment for the calls that trials wait for, so that a trial that has ended is stored as ended."""
        self._call()
        end_s = time.monotonic() + _LAST_CALLS_S
        for participant in self.meeting.participants:
            if isinstance(participant.request, Answer):
                left_s = end_s - time.monotonic()
                if self.context.background.wait(participant.request.future, left_s, left_s):
                    participant.answer()

    def _join(self) -> bool:
        """Give lanes to the trials that wait for one of this program; return whether there were any."""
        waiting = self._waiting()
        homeless = [one for one in waiting if self._trial_of(one).place is None]
        if leaving := [one for one in homeless if self._must_leave(self._trial_of(one))]:
            for participant in leaving:
                participant.answer(error=TrialLeft("the trial is given back before it has a lane"))
            return True
        if waiting and len(self._free) == self.size and not any(one.request.key == self._key for one in waiting):
            try:
                self._open(waiting[0].request)
            except TunerError:
                raise
            except Exception as error:  # it fails alone
                waiting[0].answer(error=error)
                return True
            self._note_compiled(self._trial_of(waiting[0]))
        given = [self._give_lane(one) for one in waiting if one.request.key == self._key]
        return any(given)

    def _give_lane(self, participant: Participant) -> bool:
        """Give a lane to a training; return False if its trial waits for a place."""
        assert self._lanes is not None
        trial = self._trial_of(participant)
        if trial.place is None:
            if not self._free:
                return False
            place = trial.place = self._free.pop(0)
            trial.unused = list(range(place * self._width, (place + 1) * self._width))
            trial.count = self._lanes.count
            if self._others():
                self._passed += 1
        lane = trial.unused.pop(0)
        trial.lanes.add(lane)
        participant.answer((self._lanes, lane))
        return True

    def _must_leave(self, trial: _Trial) -> bool:
        assert trial.attempt is not None
        watch = trial.attempt.watch
        return self.context.stop.requested or watch.must_stop.is_set() or watch.is_lost.is_set()

    def _open(self, first: Join) -> None:
        """Make lanes for the program of a trial.

        Raises:
            CannotShare: trials with this data cannot train together.
        """
        if not first.feed.is_resident:
            raise CannotShare("trials with a StreamDataset train one by one: their data are read on the host")
        count = self.size * self._width
        if self.asked == "auto":
            study = self.context.study
            steps = (study.epochs or 1) * first.feed.steps
            start = First(first.feed.first(), study.seed, steps, OPTIMIZER_RULES)
            most = min(self._most * self._width, MOST_LANES)
            count = best_count(first.trainer, first.hparams, first.feed, start, most, self.choose)
            self.size = max(1, count // self._width)
            count = 1 if count == 1 else self.size * self._width
        self._lanes = Lanes(first.trainer, first.hparams, first.feed, count, self.choose)
        self._key, self._passed, self._free = first.key, 0, list(range(self.size))
        if count != self._said:
            self._said = count
            self.context.say(CohortChosen(self.size, self._described(count)))

    def _described(self, lanes: int) -> str:
        if lanes == 1:
            return "trials train one by one"
        seeds = f" with {self._width} seeds each" if self._width > 1 else ""
        trials = f"{self.size} trials{seeds} train" if self.size > 1 else f"the {self._width} seeds of a trial train"
        return f"{trials} at once in one program"

    def _do_tasks(self) -> None:
        """Run the next program for the lanes that wait for it."""
        assert self._lanes is not None
        for participant in self.meeting.participants:
            if isinstance(participant.request, Tasks) and participant not in self._tasks:
                self._tasks[participant] = deque(participant.request.tasks)
        of_lane = {participant.request.lane: participant for participant in self._tasks}
        chosen = self._lanes.next_tasks({lane: self._tasks[one][0] for lane, one in of_lane.items()})
        began_s = time.monotonic()
        try:
            results: Mapping[int, Any] = self._lanes.do({lane: self._tasks[of_lane[lane]][0] for lane in chosen})
        except Exception as error:
            raise ProgramFailed(last_line(str(error)), self.context.runtime.is_out_of_memory(error)) from error
        self._note_compiled(self._trial_of(of_lane[chosen[0]]))
        seconds = time.monotonic() - began_s
        trials = {trial.lease.number: trial for trial in (self._trial_of(of_lane[lane]) for lane in chosen)}
        for trial in trials.values():
            assert trial.attempt is not None
            trial.attempt.watchdog.count(seconds)
        for lane in chosen:
            participant = of_lane[lane]
            self._tasks[participant].popleft()
            if not self._tasks[participant]:
                del self._tasks[participant]
                participant.answer(results.get(lane))
