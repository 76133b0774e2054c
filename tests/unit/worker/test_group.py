"""How the ranks of a worker that spans hosts find each other, agree and end; without JAX."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from slurm_cluster import free_ports

import tuner.worker.group as groups
from tuner.errors import RankLost, UsageError
from tuner.trial import Stop
from tuner.worker.group import Abandoned, Dismissed, Follower, Leader, Member, find_member, follow, lead

SLURM = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"}


@pytest.mark.parametrize(
    ("given", "environment", "expected"),
    [
        ((None, None, None), SLURM, None),
        ((1, None, None), {}, None),
        ((1, "a:1", 0), {}, None),
        ((2, "node1:7000", 1), {}, Member(2, 1, "node1", 7000)),
        ((2, "[::1]:7000", 0), SLURM, Member(2, 0, "::1", 7000)),
        ((4, "node1:7000", None), SLURM, Member(4, 3, "node1", 7000)),
    ],
)
def test_a_process_finds_its_place(
    given: tuple[Any, Any, Any], environment: dict[str, str], expected: Member | None
) -> None:
    assert find_member(*given, environment) == expected


@pytest.mark.parametrize(
    ("given", "environment", "message"),
    [
        ((None, "a:1", None), {}, "`coordinator` has no effect without `hosts`"),
        ((None, None, 0), {}, "`rank` has no effect without `hosts`"),
        ((0, None, None), {}, "`hosts` must be at least 1: got 0"),
        ((2, None, 0), {}, "`hosts` needs `coordinator`: pass HOST:PORT of rank 0"),
        ((2, "node1", 0), {}, "`coordinator` must be HOST:PORT such as node1:7000: got 'node1'"),
        ((2, "node1:99999", 0), {}, "`coordinator` must be HOST:PORT"),
        ((2, ":7000", 0), {}, "`coordinator` must be HOST:PORT"),
        ((2, "node1:7000", None), {}, "`hosts` needs `rank`: pass 0 on one host, 1 on the next"),
        ((2, "node1:7000", None), SLURM, "`hosts` must be the number of tasks of the step of Slurm, 4: got 2"),
        ((2, "node1:7000", 2), {}, "`rank` must be from 0 to 1: got 2"),
    ],
)
def test_a_wrong_place_is_refused(given: tuple[Any, Any, Any], environment: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_member(*given, environment)
    assert message in str(caught.value)


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The statuses with which ranks would have ended this process; a thread that does so goes no further."""
    found: list[int] = []

    def end(status: int) -> None:
        found.append(status)
        raise SystemExit

    monkeypatch.setattr(groups.os, "_exit", end)
    return found


class Ranks:
    """A leader and its followers in one process."""

    def __init__(self, count: int) -> None:
        (port,) = free_ports(1)
        self.members = [Member(count, rank, "127.0.0.1", port) for rank in range(count)]
        self.stop = Stop()
        self.pool = ThreadPoolExecutor(count)
        leading = self.pool.submit(lead, self.members[0], "me")
        following = [self.pool.submit(follow, member, "me", self.stop) for member in self.members[1:]]
        self.leader, self.address = leading.result(60)
        self.followers = [one.result(60)[0] for one in following]

    def at(self, call: Callable[[Leader | Follower], Any]) -> list[Any]:
        """Make a call on all ranks at once; return the results."""
        futures = [self.pool.submit(call, one) for one in (self.leader, *self.followers)]
        return [future.result(60) for future in futures]

    def end(self) -> None:
        self.leader.close()
        self.pool.shutdown()


@pytest.fixture
def ranks(ended: list[int]) -> Iterator[Ranks]:
    made = Ranks(3)
    yield made
    made.end()
    assert ended == []


def test_all_ranks_get_what_rank_0_decides(ranks: Ranks) -> None:
    asked: list[str] = []

    def decide() -> dict[str, Any]:
        asked.append(threading.current_thread().name)
        return {"loss": 0.1 + 0.2, "bad": float("inf"), "none": None}

    found = ranks.at(lambda group: group.agree("metrics", decide))
    assert found == [{"loss": 0.30000000000000004, "bad": float("inf"), "none": None}] * 3
    assert len(asked) == 1, "the others do not decide"


def test_arrays_arrive_byte_for_byte(ranks: Ranks) -> None:
    large = bytes(range(256)) * 40_000
    (head, none), *others = ranks.at(lambda group: group.share("arrays", lambda: ({"a": 1}, [b"", large, b"\n{}"])))
    assert (head, none) == ({"a": 1}, [])
    assert others == [({"a": 1}, [b"", large, b"\n{}"])] * 2


def test_values_that_differ_are_refused(ranks: Ranks) -> None:
    assert ranks.at(lambda group: group.check_same("data", [1, ("a", None)])) == [None] * 3
    with pytest.raises(UsageError, match=r"all hosts must have the same data: rank 2 on .* has 2, rank 0 on .* has 0"):
        ranks.at(lambda group: group.check_same("data", 2 if group is ranks.followers[1] else 0))


def test_a_trial_is_trained_on_all_ranks(ranks: Ranks) -> None:
    trained: list[Any] = []

    def train(group: Leader | Follower) -> None:
        if isinstance(group, Leader):
            for number in range(2):
                with group.together({"number": number}):
                    group.agree("epoch", lambda: 1)
            group.close()
            return
        for task in group.tasks():
            with group.together():
                trained.append((task["number"], group.agree("epoch", int)))

    ranks.at(train)
    assert sorted(trained) == [(0, 1)] * 2 + [(1, 1)] * 2


@pytest.mark.parametrize("fails", ["rank 0", "all ranks", "rank 0 after the others"])
def test_ranks_leave_a_trial_that_rank_0_cannot_finish(ranks: Ranks, fails: str) -> None:
    numbers: list[int] = []

    def train(group: Leader | Follower) -> None:
        if isinstance(group, Leader):
            with pytest.raises(KeyError), group.together({"number": 0}):
                raise KeyError("planted")
            assert not group.is_broken
            with group.together({"number": 1}):
                group.agree("epoch", lambda: 1)
            group.close()
            return
        for task in group.tasks():
            with group.together():
                numbers.append(task["number"])
                if task["number"] == 0 and fails == "all ranks":
                    raise KeyError("planted")
                if task["number"] == 1 or fails == "rank 0":
                    group.agree("epoch", int)

    ranks.at(train)
    assert numbers.count(0) == numbers.count(1) == 2


def test_a_rank_that_does_not_leave_breaks_the_group(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "LEAVE_S", 0.1)
    with pytest.raises(KeyError), ranks.leader.together({}):
        raise KeyError("planted")
    assert ranks.leader.is_broken


def test_a_rank_that_is_not_in_step_says_so(ranks: Ranks) -> None:
    ranks.leader.agree("stop", lambda: False)
    with pytest.raises(RankLost, match="rank 1 is not in step: it waits for 'epoch 1', and rank 0 sends 'stop'"):
        ranks.followers[0].agree("epoch 1", bool)


def test_a_follower_ends_with_rank_0(ranks: Ranks) -> None:
    ranks.leader.close()
    with pytest.raises(Dismissed):
        ranks.followers[0].agree("study", dict)
    assert list(ranks.followers[1].tasks()) == []


def test_an_abandoned_trial_is_left_at_the_next_decision(ranks: Ranks) -> None:
    ranks.leader._send({"abandon": True})
    with pytest.raises(Abandoned):
        ranks.followers[0].agree("stop", bool)


@pytest.mark.parametrize("failure", [UsageError("wrong file"), KeyError("planted")])
def test_a_failure_of_another_rank_ends_rank_0(
    ended: list[int], failure: Exception, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    ranks, lost = Ranks(2), list[int]()
    ranks.leader.on_loss = lambda: lost.append(1)
    ranks.followers[0].report(failure)
    if isinstance(failure, UsageError):
        with pytest.raises(UsageError, match=r"rank 1 on .* failed: UsageError: wrong file"):
            ranks.leader.check_same("data", 1)
        assert (lost, ended) == ([], [])
    else:
        with pytest.raises(SystemExit):
            ranks.leader.check_same("data", 1)
        assert (lost, ended) == ([1], [1]), "the trial is given back, and counts a death"
    ranks.end()


def test_a_stranger_is_refused_and_does_no_harm(ended: list[int]) -> None:
    (port,) = free_ports(1)
    member, stop = Member(2, 0, "127.0.0.1", port), Stop()
    with ThreadPoolExecutor(2) as pool:
        leading: Future[Any] = pool.submit(lead, member, "me")
        for name, rank, ranks, message in (
            ("other", 1, 2, "it has name 'other', rank 0 has 'me'"),
            ("me", 1, 3, "it has ranks 3, rank 0 has 2"),
            ("me", 2, 2, "its rank must be from 1 to 1: got 2"),
        ):
            with pytest.raises(UsageError, match=message):
                follow(Member(ranks, rank, "127.0.0.1", port), name, stop)
        for said in (b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b""):
            with socket.create_connection(("127.0.0.1", port)) as stranger:
                stranger.sendall(said)
        follower, address = follow(Member(2, 1, "127.0.0.1", port), "me", stop)
        leader, same = leading.result(60)
    assert address == same
    assert address.startswith("127.0.0.1:")
    leader.close()
    with pytest.raises(Dismissed):
        follower.agree("study", dict)


def test_a_rank_that_does_not_come_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "JOIN_S", 0.2)
    (port,) = free_ports(1)
    with pytest.raises(RankLost, match=rf"rank 1, 2 did not connect to rank 0 at 127.0.0.1:{port} within 0 s"):
        lead(Member(3, 0, "127.0.0.1", port), "me")
    with pytest.raises(RankLost, match=f"rank 1 cannot connect to rank 0 at 127.0.0.1:{port}"):
        follow(Member(3, 1, "127.0.0.1", port), "me", Stop())


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RankLost, match=f"rank 0 cannot listen on port {port}: "):
            lead(Member(2, 0, "127.0.0.1", port), "me")


ONE_RANK = """
import sys, time
from tuner.trial import Stop
from tuner.worker.group import Member, follow, lead
rank, port, stops = map(int, sys.argv[1:])
member, stop = Member(2, rank, "127.0.0.1", port), Stop()
group = (lead(member, "") if rank == 0 else follow(member, "", stop))[0]
stop.requested = bool(stops)
if rank == 0:
    group.on_loss = lambda: print("given back", flush=True)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("killed", "stops", "status", "said"),
    [
        (1, 0, 1, "rank 1 on "),
        (0, 0, 1, "rank 0 on 127.0.0.1 has ended; rank 1 ends"),
        (0, 1, 130, ""),
    ],
)
def test_a_killed_rank_ends_the_others_at_once(
    wait_until: Callable[..., Any], killed: int, stops: int, status: int, said: str
) -> None:
    (port,) = free_ports(1)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(groups.__file__).parents[2]), *sys.path])}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ONE_RANK, str(rank), str(port), str(stops)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        for rank in range(2)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        processes[killed].kill()
        output, errors = processes[1 - killed].communicate(timeout=60)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert processes[1 - killed].returncode == status
    assert said in errors
    assert output == ("given back\n" if killed == 1 else "")
