"""Random faults against real launches: `python tests/faults/chaos.py --episodes 300 --seed 0`.

An episode launches `tests/chaos_study.py`, whose metrics are a known function of hyperparameters and epoch, on a new
database, does it harm several times, repairs what it can, and lets it end. Then the database is read with plain SQL and
plain Optuna, and must say what it would have said without faults. Triggers in the database note who wrote each report
and who took which lease, so that a write that was overwritten later is seen as well. One seed gives the same faults in
the same order; when they hit depends on the machine. Prints episodes, faults by kind and violations; exit status 1 with
violations. `tests/faults/test_chaos.py` shows that each check fails where it must.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg2

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS))

from postgres_server import PASSWORD, ROLE, Server  # noqa: E402
from silent_proxy import Proxy  # noqa: E402

EPOCHS, STEPS, LEASE_S = 6, 7, 6.0
DEADLINE_S = 400.0
"""How long an episode may take after its last fault, on a slow and busy machine."""
FAKETIME = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)


SLEEP = """
# libfaketime answers `clock_nanosleep`, which Python sleeps with, by EINVAL if it leaves the monotonic clock alone.
import threading, time
time.sleep = lambda seconds: threading.Event().wait(seconds) and None
"""


ENDING = "SELECT worker FROM tuner_attempts WHERE trial_id = new.trial_id AND ended_at_s IS NULL"
"""Who ends a trial: the last reports are stored with its end, when its lease is gone and its attempt is still open."""
WATCHED_IN_SQLITE = [
    "CREATE TABLE chaos_writes (trial_id INTEGER, epoch INTEGER, metrics TEXT, worker TEXT)",
    "CREATE TABLE chaos_takeovers (trial_id INTEGER, loser TEXT, taker TEXT, left_s FLOAT)",
    *(
        f"""
        CREATE TRIGGER chaos_{event} AFTER {event} ON tuner_reports BEGIN
            INSERT INTO chaos_writes SELECT new.trial_id, new.epoch, new.metrics,
            CASE WHEN EXISTS (SELECT 1 FROM tuner_leases WHERE trial_id = new.trial_id)
            THEN (SELECT worker FROM tuner_leases WHERE trial_id = new.trial_id) ELSE ({ENDING}) END;
        END
        """
        for event in ("insert", "update")
    ),
    """
    CREATE TRIGGER chaos_takeover AFTER UPDATE ON tuner_leases WHEN old.worker <> new.worker BEGIN
        INSERT INTO chaos_takeovers SELECT new.trial_id, old.worker, new.worker,
        old.expires_at_s - (julianday('now') - 2440587.5) * 86400.0;
    END
    """,
]
WATCHED_IN_POSTGRES = [
    """
    CREATE TABLE chaos_writes (trial_id int, epoch int, metrics text, worker text);
    CREATE TABLE chaos_takeovers (trial_id int, loser text, taker text, left_s float);
    CREATE FUNCTION chaos_write() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
        INSERT INTO public.chaos_writes SELECT new.trial_id, new.epoch, new.metrics,
        CASE WHEN EXISTS (SELECT FROM public.tuner_leases WHERE trial_id = new.trial_id)
        THEN (SELECT worker FROM public.tuner_leases WHERE trial_id = new.trial_id)
        -- The attempt of who ends the trial in this transaction; it may be closed already.
        ELSE (SELECT worker FROM public.tuner_attempts WHERE trial_id = new.trial_id
            AND (ended_at_s IS NULL OR xmin::text::bigint = mod(txid_current(), 4294967296))
            ORDER BY fence DESC LIMIT 1)
        END;
        RETURN NULL;
    END $$;
    CREATE FUNCTION chaos_takeover() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
        INSERT INTO public.chaos_takeovers SELECT new.trial_id, old.worker, new.worker,
        old.expires_at_s - extract(epoch FROM clock_timestamp());
        RETURN NULL;
    END $$;
    CREATE TRIGGER chaos_write AFTER INSERT OR UPDATE ON tuner_reports
        FOR EACH ROW EXECUTE FUNCTION chaos_write();
    CREATE TRIGGER chaos_takeover AFTER UPDATE ON tuner_leases
        FOR EACH ROW WHEN (old.worker <> new.worker) EXECUTE FUNCTION chaos_takeover();
    """
]
"""What makes a database note who writes reports, and whose lease is taken, with the seconds that it still had."""


def loss_at(learning_rate: float, noise: float, epoch: int) -> float:
    """As `chaos_study.loss_at`; written here again, because the study's file imports JAX."""
    return (math.log10(learning_rate) + 2.0) ** 2 + noise / epoch + 1.0 / epoch


# --- One launch after another


@dataclass
class Episode:
    """A study on an empty database, its launches, and what was done to them."""

    rng: random.Random
    folder: Path
    server: Server | None
    """None on SQLite."""
    trials: int = 0
    workers: int = 2
    pruner: str = "none"
    pace_s: float = 0.05
    save_s: float = 0.0
    is_watched: bool = False
    """Whether the triggers are in place."""
    has_clock: bool = False
    """Whether the clock of launcher and workers is to be changed."""
    proxy: Proxy | None = None
    process: subprocess.Popen[str] | None = None
    output: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    stopped: set[int] = field(default_factory=set)
    may_die: int = 0
    """How many attempts may count as died at most: for each process that was killed or stood still, what it had."""
    statuses: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.trials = self.rng.randint(6, 12)
        self.workers = self.rng.choice([1, 2, 2, 3])
        self.pruner = self.rng.choice(["none", "asha"])
        self.pace_s = self.rng.choice([0.05, 0.05, 0.3])
        self.save_s = self.rng.choice([0.0, 0.0, 60.0])
        self.database = f"chaos_{uuid.uuid4().hex[:12]}"
        self.clock = self.folder / "clock"
        self.clock.write_text("+0s")
        shutil.copy(TESTS / "chaos_study.py", self.folder)
        (self.folder / "sitecustomize.py").write_text(SLEEP)
        if self.server is not None:
            self.server.ask(f"CREATE DATABASE {self.database} OWNER {ROLE}")
            self.proxy = Proxy(self.server.port)

    @property
    def url(self) -> str:
        """What the launches are given: a SQLite file, or Postgres through the proxy."""
        if self.proxy is None:
            return f"sqlite:///{self.folder / 'study.db'}"
        return f"postgresql://{ROLE}:{PASSWORD}@127.0.0.1:{self.proxy.port}/{self.database}"

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Read past proxy and product; none while the tables do not exist or the server is away."""
        try:
            if self.server is not None:
                return self.server.ask(query, database=self.database)
            path = self.folder / "study.db"
            if not path.exists():
                return []
            with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=300)) as connection:
                return connection.execute(query).fetchall()
        except (sqlite3.Error, OSError, psycopg2.Error):
            return []

    def reported(self) -> int:
        return (self.rows("SELECT count(*) FROM tuner_reports") or [(0,)])[0][0]

    def watch(self) -> None:
        """Have the database note writes and takeovers from now on, once the product has made its tables."""
        if self.is_watched or not self.reported():
            return
        with contextlib.suppress(sqlite3.OperationalError, psycopg2.Error):
            if self.server is not None:
                for statement in WATCHED_IN_POSTGRES:
                    self.server.ask(statement, database=self.database)
            else:
                path = self.folder / "study.db"
                with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=300)) as connection:
                    connection.execute("BEGIN IMMEDIATE")
                    for statement in WATCHED_IN_SQLITE:
                        connection.execute(statement)
                    connection.execute("COMMIT")
            self.is_watched = True

    def launch(self) -> None:
        """Start a launch."""
        env = {name: value for name, value in os.environ.items() if not name.startswith(("TUNER_", "XLA_", "JAX_"))}
        env |= {
            "TUNER_STORAGE": self.url, "CHAOS_TRIALS": str(self.trials), "CHAOS_EPOCHS": str(EPOCHS),
            "CHAOS_PRUNER": self.pruner, "CHAOS_LEASE_S": str(LEASE_S), "CHAOS_PACE_S": str(self.pace_s),
            "CHAOS_SAVE_S": str(self.save_s), "JAX_PLATFORMS": "cpu",
        }  # fmt: skip
        if self.has_clock:
            env |= {
                "PYTHONPATH": os.pathsep.join(filter(None, [str(self.folder), env.get("PYTHONPATH")])),
                "LD_PRELOAD": str(FAKETIME),
                "FAKETIME_TIMESTAMP_FILE": str(self.clock), "FAKETIME_NO_CACHE": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1",
            }  # fmt: skip
        words = [sys.executable, "-m", "tuner", "launch", "chaos_study.py", "--workers", str(self.workers)]
        self.process = subprocess.Popen(
            words, cwd=self.folder, env=env, stdin=subprocess.DEVNULL, text=True, errors="replace",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        threading.Thread(target=self._read, args=(self.process,), daemon=True).start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            self.output += lines

    def children(self) -> list[int]:
        """Return the workers of the launch."""
        assert self.process is not None
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        try:
            return [int(word) for word in path.read_text().split()]
        except OSError:
            return []

    def holders(self) -> list[int]:
        """Return the workers of the launch that have a trial."""
        query = "SELECT pid FROM tuner_leases JOIN tuner_workers ON tuner_workers.worker = tuner_leases.worker"
        children = self.children()
        return sorted(pid for (pid,) in self.rows(query) if pid in children)

    def has_lost_trial(self, pid: int) -> bool:
        """Return whether a worker counts as dead in one of its trials."""
        attempts = "SELECT 1 FROM tuner_attempts JOIN tuner_workers ON tuner_workers.worker = tuner_attempts.worker"
        return bool(self.rows(f"{attempts} WHERE pid = {pid} AND ending = 'died'"))

    def processes(self) -> list[int]:
        """Return all processes that were started for this episode and still run."""
        found, wanted = [], f"TUNER_STORAGE={self.url}".encode()
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal():
                with contextlib.suppress(OSError):
                    if wanted in (folder / "environ").read_bytes().split(b"\0"):
                        found.append(int(folder.name))
        return found

    def has_ended(self) -> bool:
        """Return whether the launch is over; note how it ended."""
        assert self.process is not None
        status = self.process.poll()
        if status is None:
            return False
        self.statuses.append(status)
        return True

    def heal(self) -> None:
        """Undo what lasts."""
        for pid in self.stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self.stopped.clear()
        if self.proxy is not None:
            self.proxy.resume()

    def close(self) -> None:
        """End what is left of the episode."""
        self.heal()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.process is not None:
            self.process.wait()
        if self.proxy is not None:
            self.proxy.close()
        if self.server is not None:
            self.server.ask(f"DROP DATABASE IF EXISTS {self.database} WITH (FORCE)")
        shutil.rmtree(self.folder, ignore_errors=True)


# --- Faults. Each returns after it has done its harm; what lasts is undone by the next one, or by `heal`.


def pause(seconds: float) -> None:
    """Let a fault last: the one thing here that is a matter of time."""
    threading.Event().wait(seconds)


def kill_worker(episode: Episode) -> bool:
    workers = episode.children()
    if not workers:
        return False
    episode.may_die += 1
    with contextlib.suppress(ProcessLookupError):
        os.kill(episode.rng.choice(workers), signal.SIGKILL)
    return True


def kill_launcher(episode: Episode) -> bool:
    assert episode.process is not None
    episode.may_die += episode.workers  # those that cannot give their trial back in time
    episode.process.kill()
    episode.process.wait()
    return True


def end_launch(episode: Episode) -> bool:
    assert episode.process is not None
    episode.process.send_signal(episode.rng.choice([signal.SIGTERM, signal.SIGINT]))
    return True


def end_worker(episode: Episode) -> bool:
    workers = episode.children()
    if not workers:
        return False
    episode.may_die += 1
    with contextlib.suppress(ProcessLookupError):
        os.kill(episode.rng.choice(workers), signal.SIGTERM)
    return True


def stop_worker(episode: Episode) -> bool:
    workers = episode.holders() or episode.children()
    if not workers:
        return False
    pid = episode.rng.choice(workers)
    episode.may_die += 1
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        episode.stopped.add(pid)
    end_s = time.monotonic() + episode.rng.choice([0.5, 2.0 * LEASE_S, 2.0 * LEASE_S])
    # It goes on as soon as another has its trial: then both are at work on it.
    while time.monotonic() < end_s and not episode.has_lost_trial(pid):
        pause(0.05)
    episode.heal()
    return True


def restart_server(episode: Episode) -> bool:
    assert episode.server is not None
    episode.server.restart(episode.rng.choice(["fast", "immediate"]))
    return True


def freeze_server(episode: Episode) -> bool:
    """Stop every process of the server for a while."""
    assert episode.server is not None
    postmaster = int((episode.server.data / "postmaster.pid").read_text().split()[0])
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    stopped = [postmaster, *map(int, children)]
    episode.stopped |= set(stopped)
    for pid in stopped:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    pause(episode.rng.choice([1.0, 4.0, 1.5 * LEASE_S]))
    episode.heal()
    return True


def stall_network(episode: Episode) -> bool:
    assert episode.proxy is not None
    episode.proxy.hold()
    pause(episode.rng.choice([1.0, 4.0, 1.5 * LEASE_S]))
    episode.proxy.resume()
    return True


def silence_connections(episode: Episode) -> bool:
    assert episode.proxy is not None
    return episode.proxy.silence() > 0


def drop_connections(episode: Episode) -> bool:
    assert episode.server is not None
    return episode.server.cut_off(episode.database) > 0


def lock_file(episode: Episode) -> bool:
    path = episode.folder / "study.db"
    if not path.exists():
        return False
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=300)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        pause(episode.rng.choice([1.0, 4.0]))
        connection.execute("ROLLBACK")
    return True


def jump_clock(episode: Episode) -> bool:
    """Put the clocks of launcher and workers forward or back."""
    offset_s = episode.rng.choice([60, 3600, -60, -3600])
    episode.clock.write_text(f"{offset_s:+d}s")
    return True


ANYWHERE = (kill_worker, kill_worker, kill_launcher, end_launch, end_worker, stop_worker)
CLOCK = (jump_clock, jump_clock) if FAKETIME is not None else ()
ON_SQLITE = (*ANYWHERE, lock_file, *CLOCK)
ON_POSTGRES = (
    *ANYWHERE, restart_server, freeze_server, stall_network, silence_connections, drop_connections, *CLOCK,
)  # fmt: skip


# --- An episode


def run_episode(seed: int, server: Server | None) -> tuple[Counter[str], list[str]]:
    """Run an episode; return its faults and what does not hold after it.

    Args:
        seed: Gives size and faults.
        server: The Postgres server; SQLite if None.
    """
    rng = random.Random(f"{seed} {server is None}")
    episode = Episode(rng, Path(tempfile.mkdtemp(prefix="tuner-chaos-")), server)
    faults = [rng.choice(ON_SQLITE if server is None else ON_POSTGRES) for _ in range(rng.randint(2, 6))]
    episode.has_clock = jump_clock in faults
    try:
        hang = harm(episode, faults)
        violations = [hang] if hang else check(episode)
        return episode.faults, [f"seed {seed} ({'sqlite' if server is None else 'postgres'}): {v}" for v in violations]
    finally:
        episode.close()


def harm(episode: Episode, faults: list[Callable[[Episode], bool]]) -> str | None:
    """Launch the study until it is done, with faults on the way; return what was waited for in vain."""
    episode.launch()
    for fault in faults:
        target = episode.reported() + episode.rng.randint(1, 8)
        end_s = time.monotonic() + DEADLINE_S
        while not episode.has_ended() and episode.reported() < target:
            episode.watch()
            if time.monotonic() > end_s:
                return f"no report for {DEADLINE_S:.0f} s before {fault.__name__}"
            pause(0.2)
        if episode.process is not None and episode.process.poll() is not None:
            if episode.statuses[-1] == 0:
                return None
            episode.launch()
            continue
        if fault(episode):
            episode.faults[fault.__name__] += 1
    episode.heal()
    end_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < end_s:
        if not episode.has_ended():
            episode.watch()
            pause(0.2)
        elif episode.statuses[-1] == 0:
            return None
        elif episode.statuses[-3:] == [1, 1, 1]:
            return f"the launch fails again and again: {''.join(episode.output)[-600:]!r}"
        else:
            episode.launch()
    return f"the launch did not end within {DEADLINE_S:.0f} s after the last fault"


# --- What must hold afterwards


def check(episode: Episode) -> list[str]:
    """Return what does not hold; reads with SQL and with Optuna's own storage."""
    return [
        violation
        for part in (_outputs, _trials, _curves, _rungs, _attempts, _writes, _takeovers, _optuna)
        for violation in part(episode)
    ]


def _outputs(episode: Episode) -> Iterator[str]:
    text = "".join(episode.output)
    if "Traceback" in text:
        at = text.index("Traceback")
        yield f"a traceback was printed: {text[at : at + 1500]!r}"
    if PASSWORD in text:
        yield "a password was printed"
    odd = [status for status in episode.statuses if status not in (0, 1, 130, -signal.SIGKILL)]
    if odd:
        yield f"launches ended with status {odd}: {text[-600:]!r}"
    left = episode.processes()
    if left:
        yield f"{len(left)} processes are left behind"


def _params(episode: Episode) -> dict[int, tuple[float, float]]:
    """Return learning rate and noise of each trial, by its id."""
    found: dict[int, dict[str, float]] = {}
    for trial_id, name, value in episode.rows("SELECT trial_id, param_name, param_value FROM trial_params"):
        found.setdefault(trial_id, {})[name] = value
    return {trial_id: (params["learning_rate"], params["noise"]) for trial_id, params in found.items()}


def _trials(episode: Episode) -> Iterator[str]:
    rows = episode.rows("SELECT number, state FROM trials ORDER BY number")
    states = Counter(str(state) for _, state in rows)
    failed = states.pop("FAIL", 0)
    if failed and episode.may_die < 3 * failed:
        errors = episode.rows("SELECT trial_id, error FROM tuner_records WHERE outcome = 'failed'")
        tries = "SELECT trial_id, fence, worker, ending, started_at_s, ended_at_s FROM tuner_attempts ORDER BY 1, 2"
        tried = [row for row in episode.rows(tries) if row[0] in dict(errors)]
        yield f"{failed} trials failed with {episode.may_die} deaths at most: three fail a trial: {errors}, {tried}"
    if set(states) - {"COMPLETE", "PRUNED"}:
        yield f"trials are left unfinished: {dict(states)}"
    if sum(states.values()) != episode.trials:
        yield f"{sum(states.values())} trials of {episode.trials} asked for"
    if [number for number, _ in rows] != list(range(len(rows))):
        yield f"numbers are not 0, 1, 2, ...: {[number for number, _ in rows]}"
    if episode.pruner == "none" and states["PRUNED"]:
        yield "trials were pruned without a pruner"
    leases = episode.rows("SELECT trial_id, worker FROM tuner_leases")
    if leases:
        yield f"leases are left: {leases}"


def _curves(episode: Episode) -> Iterator[str]:
    params = _params(episode)
    told = episode.rows("SELECT trial_id, step, intermediate_value FROM trial_intermediate_values")
    stored: list[tuple[int, int, float]] = []
    for trial_id, epoch, step, metrics in episode.rows("SELECT trial_id, epoch, step, metrics FROM tuner_reports"):
        found = json.loads(metrics)
        stored.append((trial_id, epoch, found["loss"]))
        if step != STEPS * epoch or found["train_loss"] != 2.0 * found["loss"]:
            yield f"trial id {trial_id} has at epoch {epoch} the step {step} and the metrics {metrics}"
    if sorted(told) != sorted(stored):
        yield f"Optuna's values and ours differ: {sorted(set(told) ^ set(stored))[:4]}"
    doubled = [key for key, times in Counter((row[0], row[1]) for row in stored).items() if times > 1]
    if doubled:
        yield f"epochs are doubled: {doubled}"
    for trial_id, epoch, value in stored:
        if value != loss_at(*params[trial_id], epoch):
            yield f"trial id {trial_id} has {value} at epoch {epoch}, not {loss_at(*params[trial_id], epoch)}"
    query = "SELECT trials.trial_id, state, value FROM trials LEFT JOIN trial_values USING (trial_id)"
    for trial_id, state, value in episode.rows(query):
        epochs = sorted(epoch for of, epoch, _ in stored if of == trial_id)
        if state == "FAIL":
            continue
        if epochs != list(range(1, len(epochs) + 1)) or (state == "COMPLETE" and len(epochs) != EPOCHS) or not epochs:
            yield f"trial id {trial_id} ({state}) has reports of the epochs {epochs}"
        elif value is None or not math.isfinite(value) or value not in {loss_at(*params[trial_id], e) for e in epochs}:
            yield f"trial id {trial_id} ({state}) has the value {value}, which none of its epochs has"
        elif state == "COMPLETE" and value != loss_at(*params[trial_id], EPOCHS):
            yield f"trial id {trial_id} has the value {value}, not that of its last epoch"


def _rungs(episode: Episode) -> Iterator[str]:
    params = _params(episode)
    rows = episode.rows("SELECT trial_id, rung, value, position FROM tuner_rungs")
    if len({(trial_id, rung) for trial_id, rung, *_ in rows}) != len(rows):
        yield "a trial counts twice in a rung"
    if sorted(position for *_, position in rows) != list(range(1, len(rows) + 1)):
        yield f"positions in the rungs are {sorted(position for *_, position in rows)}"
    for trial_id, rung, value, _ in rows:
        # With the database away, a trial comes to a rung at a later epoch.
        if value not in {loss_at(*params[trial_id], epoch) for epoch in range(3**rung, EPOCHS + 1)}:
            yield f"trial id {trial_id} has {value} in rung {rung}"


def _attempts(episode: Episode) -> Iterator[str]:
    rows = episode.rows("SELECT trial_id, fence, ending, ended_at_s FROM tuner_attempts ORDER BY trial_id, fence")
    died = sum(ending == "died" for _, _, ending, _ in rows)
    if died > episode.may_die:
        yield f"{died} attempts count as died, with {episode.may_die} processes killed or stopped"
    fences: dict[int, list[int]] = {}
    for trial_id, fence, _, ended_at_s in rows:
        fences.setdefault(trial_id, []).append(fence)
        if ended_at_s is None:
            yield f"attempt {fence} of trial id {trial_id} goes on"
    for trial_id, found in fences.items():
        if found != list(range(1, len(found) + 1)):
            yield f"trial id {trial_id} has attempts {found}"
    records = [row[0] for row in episode.rows("SELECT trial_id FROM tuner_records")]
    if sorted(records) != sorted(fences):
        yield f"trials with a record: {sorted(records)}, with attempts: {sorted(fences)}"


def _writes(episode: Episode) -> Iterator[str]:
    """Yield what was written by a process that did not hold the trial at that moment, whatever came later."""
    names = dict(episode.rows("SELECT worker, pid FROM tuner_workers"))
    rows = episode.rows("SELECT trial_id, epoch, metrics, worker FROM chaos_writes")
    if not rows:
        yield "no write was watched"
    for trial_id, epoch, metrics, worker in rows:
        writer = int(json.loads(metrics)["writer"])
        if names.get(worker) != writer:
            yield f"process {writer} wrote epoch {epoch} of trial id {trial_id}, which {worker or 'nobody'} held"


def _takeovers(episode: Episode) -> Iterator[str]:
    if episode.has_clock and episode.server is None:
        return  # a trigger's clock is that of the process, which was changed
    for trial_id, loser, taker, left_s in episode.rows("SELECT trial_id, loser, taker, left_s FROM chaos_takeovers"):
        if left_s > 0.01:
            yield f"{taker} took trial id {trial_id} from {loser}, whose lease had {left_s:.2f} s left"


def _optuna(episode: Episode) -> Iterator[str]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(episode.url.replace("postgresql:", "postgresql+psycopg2:"))
    try:
        study = optuna.load_study(study_name="chaos", storage=storage)
        complete = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
        if not complete:
            yield "Optuna finds no complete trial"
            return
        best = min(loss_at(trial.params["learning_rate"], trial.params["noise"], EPOCHS) for trial in complete)
        if study.best_value != best:
            yield f"Optuna's best value is {study.best_value}, not {best}"
    finally:
        storage.engine.dispose()


# --- Many


@contextlib.contextmanager
def postgres() -> Iterator[Server]:
    """A Postgres server for the length of the body."""
    os.environ.setdefault("XDG_RUNTIME_DIR", tempfile.mkdtemp(prefix="tuner-runtime-"))  # else its package warns
    folder = Path(tempfile.mkdtemp(prefix="tuner-chaos-server-"))
    server = Server(folder)
    try:
        yield server
    finally:
        server.stop("immediate")
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="the first episode's; the next one has the next")
    parser.add_argument("--storage", choices=["both", "sqlite", "postgres"], default="both")
    asked = parser.parse_args()
    faults: Counter[str] = Counter()
    violations: list[str] = []
    with postgres() if asked.storage != "sqlite" else contextlib.nullcontext() as server:
        for seed in range(asked.seed, asked.seed + asked.episodes):
            is_sqlite = server is None or (asked.storage == "both" and seed % 2 == 0)
            began_s = time.monotonic()
            done, found = run_episode(seed, None if is_sqlite else server)
            faults += done
            violations += found
            print(f"episode {seed}: {dict(done)}, {time.monotonic() - began_s:.0f} s", *found, sep="\n  ", flush=True)
    print(f"{asked.episodes} episodes, {faults.total()} faults: {dict(faults.most_common())}")
    if FAKETIME is None:
        print("libfaketime is not installed: no clock was changed")
    print(f"{len(violations)} violations", *violations, sep="\n  ")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
