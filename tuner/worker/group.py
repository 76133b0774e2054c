"""A worker that spans hosts: a group of processes, usually one on each host, that train each trial together.

Rank 0 leads. It has the database, claims trials, makes every decision and reports. The other ranks follow: they run the
same training in step, and get each decision of rank 0 over a TCP connection. Messages are JSON, some with raw arrays.
The end of a connection shows at once that a process has ended; then all others end too, because a training cannot go
on without its share.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from tuner.errors import RankLost, UsageError, is_int
from tuner.output.log import tell
from tuner.trial import Stop

JOIN_S = 300.0
"""Seconds in which all ranks must have connected to rank 0."""
_HANDSHAKE_S = 10.0
_RETRY_S = 0.2
LEAVE_S = 30.0
"""Seconds that ranks may take to leave a training that cannot go on."""
_KEEPALIVE = (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4))
"""A host that is gone without a word counts as ended after half a minute."""

T = TypeVar("T")
Message = Mapping[str, Any]
Arrays = Sequence[bytes | memoryview]
Received = tuple[Message, list[bytes]]


class Abandoned(Exception):
    """Rank 0 cannot go on with the trial."""


class Dismissed(Exception):
    """Rank 0 needs the other ranks no more."""


@dataclass(frozen=True)
class Member:
    """A process of a group.

    Attributes:
        ranks: The number of processes, at least 2.
        rank: The number of this one, from 0.
        host: The host of rank 0, as the others find it.
        port: The port on which rank 0 waits for the others.
    """

    ranks: int
    rank: int
    host: str
    port: int

    @property
    def is_on_one_machine(self) -> bool:
        """Whether rank 0 is only reached from its own machine."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")


def find_member(
    hosts: int | None, coordinator: str | None, rank: int | None, environment: Mapping[str, str]
) -> Member | None:
    """Return this process's place in its group; None if its worker does not span hosts.

    Args:
        hosts: The number of processes of the worker, one on each host.
        coordinator: `HOST:PORT` of rank 0.
        rank: The number of this process; `$SLURM_PROCID` if None.
        environment: The environment.

    Raises:
        UsageError: something is missing or wrong.
    """
    if hosts is None or hosts == 1:
        for name, value in (("coordinator", coordinator), ("rank", rank)):
            if value is not None and hosts is None:
                raise UsageError(f"`{name}` has no effect without `hosts`: pass the number of hosts")
        return None
    if hosts < 1:
        raise UsageError(f"`hosts` must be at least 1: got {hosts}")
    if coordinator is None:
        raise UsageError("`hosts` needs `coordinator`: pass HOST:PORT of rank 0, the same on all hosts")
    host, _, port = coordinator.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UsageError(f"`coordinator` must be HOST:PORT such as node1:7000: got {coordinator!r}")
    if rank is None:
        tasks, task = (environment.get(name, "") for name in ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"))
        if not (task.isdecimal() and tasks):
            raise UsageError(
                "`hosts` needs `rank`: pass 0 on one host, 1 on the next, and so on; under `srun` it is set"
            )
        if tasks != str(hosts):
            raise UsageError(f"`hosts` must be the number of tasks of the step of Slurm, {tasks}: got {hosts}")
        rank = int(task)
    if not 0 <= rank < hosts:
        raise UsageError(f"`rank` must be from 0 to {hosts - 1}: got {rank}")
    return Member(hosts, rank, host, int(port))


class Group(Protocol):
    """What a training needs of its group, the same on each rank."""

    @property
    def is_leader(self) -> bool: ...

    def agree(self, what: str, decide: Callable[[], T]) -> T:
        """Return what rank 0 decides, as plain JSON; only rank 0 calls `decide`.

        Raises:
            Abandoned: rank 0 cannot go on; on the other ranks.
            RankLost: this rank is not where rank 0 is.
        """
        ...

    def share(self, what: str, pack: Callable[[], tuple[Any, Arrays]]) -> tuple[Any, list[bytes]]:
        """Return plain JSON and arrays of rank 0; on rank 0 only the JSON. Raises like `agree`."""
        ...

    def check_same(self, what: str, value: object) -> None:
        """Check that a value, as plain JSON, is the same on all ranks.

        Raises:
            UsageError: it is not; on rank 0.
        """
        ...


# --- Messages


class _Link:
    """A connection between two ranks."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(_HANDSHAKE_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE:
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._connection, self._reading = connection, connection.makefile("rb")
        self._is_known = False
        self._lock = threading.Lock()

    def keep(self) -> None:
        """Take messages of any size, and wait for them without a limit, from now on."""
        self._is_known = True
        self._connection.settimeout(None)

    def send(self, message: Message, arrays: Arrays = ()) -> None:
        """Send a message; raises OSError if the connection has ended."""
        sizes = [memoryview(array).nbytes for array in arrays]
        head = json.dumps({**message, "arrays": sizes}).encode() + b"\n"
        with self._lock:
            self._connection.sendall(head)
            for array in arrays:
                self._connection.sendall(array)

    def receive(self) -> Received:
        """Return the next message; raises OSError, EOFError or ValueError if there is none."""
        line = self._reading.readline(2**26)
        if not line.endswith(b"\n"):
            raise EOFError
        said: Any = json.loads(line)
        try:
            given: list[Any] = list(said.pop("arrays"))
        except (AttributeError, KeyError, TypeError):
            raise ValueError("not a message") from None
        sizes = [size for size in given if is_int(size) and size >= 0]
        if len(sizes) < len(given) or (sizes and not self._is_known):
            raise ValueError("not a message")
        return said, [self._reading.read(size) for size in sizes]

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._reading.close()
        self._connection.close()


_BROKEN = (OSError, EOFError, ValueError)


# --- Rank 0


class Leader:
    """Rank 0 of a group.

    Args:
        links: The connections to the other ranks.
        hosts: The hosts of all ranks.
    """

    is_leader = True

    def __init__(self, links: Mapping[int, _Link], hosts: Sequence[str]) -> None:
        self._links, self.hosts = dict(links), tuple(hosts)
        self._inboxes: dict[int, queue.Queue[Message]] = {rank: queue.Queue() for rank in links}
        self._is_closing, self._losing = False, threading.Lock()
        self.is_broken = False
        """Whether a rank has not left a training that ended, so that the group can train no more."""
        self.on_stop: Callable[[], None] = lambda: None
        """Called on another thread when a rank was asked to stop."""
        self.on_loss: Callable[[], None] = lambda: None
        """Called on another thread when a rank has ended, before this process ends."""
        for rank, link in links.items():
            link.keep()
            threading.Thread(target=self._read, args=(rank, link), name=f"rank-{rank}", daemon=True).start()

    def agree(self, what: str, decide: Callable[[], T]) -> T:
        """See `Group.agree`."""
        value = decide()
        self._send({"what": what, "value": value})
        return value

    def share(self, what: str, pack: Callable[[], tuple[Any, Arrays]]) -> tuple[Any, list[bytes]]:
        """See `Group.share`."""
        value, arrays = pack()
        self._send({"what": what, "value": value}, arrays)
        return value, []

    def check_same(self, what: str, value: object) -> None:
        """See `Group.check_same`."""
        mine = json.loads(json.dumps(value))
        for rank, theirs in self._gather(what).items():
            if theirs != mine:
                raise UsageError(
                    f"all hosts must have the same {what}: rank {rank} on {self.hosts[rank]} has {theirs!r}, rank 0 on "
                    f"{self.hosts[0]} has {mine!r}"
                )

    @contextlib.contextmanager
    def together(self, task: Message) -> Generator[None]:
        """Let the other ranks train a trial too, while the body does.

        Args:
            task: What they need to know, as plain JSON.
        """
        self._send({"task": task})
        try:
            yield
            self._gather("end of the trial")
        except BaseException:
            self._send({"abandon": True})
            self.is_broken = not self._have_left()
            raise

    def close(self) -> None:
        """Let the other ranks end."""
        self._is_closing = True
        self._send({"close": True})

    def _send(self, message: Message, arrays: Arrays = ()) -> None:
        for link in self._links.values():
            with contextlib.suppress(OSError):  # which the thread that reads finds as well
                link.send(message, arrays)

    def _gather(self, what: str) -> dict[int, Any]:
        found: dict[int, Any] = {}
        for rank, inbox in self._inboxes.items():
            said = inbox.get()
            if "failed" in said:
                why = f"rank {rank} on {self.hosts[rank]} failed: {said['failed']}"
                if said["is_usage"]:
                    raise UsageError(why)
                self._lose(why)
            if said.get("what") != what:
                self._lose(f"rank {rank} is not in step: rank 0 waits for {what!r}, and gets {said!r}")
            found[rank] = said["value"]
        return found

    def _have_left(self) -> bool:
        """Wait until all ranks have left the training; return False if one does not."""
        end_s = time.monotonic() + LEAVE_S
        for inbox in self._inboxes.values():
            said: Message = {}
            while "left" not in said:
                try:
                    said = inbox.get(timeout=max(0.0, end_s - time.monotonic()))
                except queue.Empty:
                    return False
        return True

    def _read(self, rank: int, link: _Link) -> None:
        try:
            while True:
                said = link.receive()[0]
                if "stop" in said:
                    self.on_stop()
                else:
                    self._inboxes[rank].put(said)
        except _BROKEN:
            if not self._is_closing:
                self._lose(f"rank {rank} on {self.hosts[rank]} has ended")
        finally:
            link.close()

    def _lose(self, why: str) -> None:
        """Give back the trial and end this process; the other ranks find the end of their connection."""
        with self._losing:  # a second thread waits here for the end
            tell(f"{why}; the group ends", "group", "error")
            try:
                self.on_loss()
            finally:
                os._exit(1)


# --- The other ranks


class Follower:
    """A rank of a group other than 0.

    Args:
        link: The connection to rank 0.
        member: This rank.
        stop: Whether this process was asked to stop, which it leaves to rank 0.
    """

    is_leader = False

    def __init__(self, link: _Link, member: Member, stop: Stop) -> None:
        self._link, self._member, self._stop = link, member, stop
        self._inbox: queue.Queue[Received] = queue.Queue()
        self._is_closing = False
        link.keep()
        threading.Thread(target=self._read, name="rank-0", daemon=True).start()

    def agree(self, what: str, decide: Callable[[], T]) -> T:
        """See `Group.agree`."""
        return self._expect(what)[0]["value"]

    def share(self, what: str, pack: Callable[[], tuple[Any, Arrays]]) -> tuple[Any, list[bytes]]:
        """See `Group.share`."""
        said, arrays = self._expect(what)
        return said["value"], arrays

    def check_same(self, what: str, value: object) -> None:
        """See `Group.check_same`."""
        self._link.send({"what": what, "value": value})

    def tasks(self) -> Iterator[Message]:
        """Yield what `Leader.together` is called with, until rank 0 ends."""
        while True:
            try:
                said = self._next()
            except Dismissed:
                return
            if "abandon" in said[0]:  # after this rank was done
                self._link.send({"left": True})
            elif "task" in said[0]:
                yield said[0]["task"]
            else:
                raise self._out_of_step("next trial", said[0])

    @contextlib.contextmanager
    def together(self) -> Generator[None]:
        """Train a trial of `tasks` in the body, and leave it when rank 0 cannot go on.

        Ends this process if this rank fails and rank 0 does not.
        """
        try:
            yield
            self._link.send({"what": "end of the trial", "value": None})
        except Abandoned:
            self._link.send({"left": True})
        except Dismissed:
            raise
        except Exception as error:
            self.report(error)
            if not self._is_abandoned():
                trace = "".join(traceback.format_exception(error)).rstrip()
                tell(f"rank {self._member.rank} failed and rank 0 did not: this rank ends\n{trace}", "group", "error")
                os._exit(1)
            self._link.send({"left": True})

    def report(self, error: Exception) -> None:
        """Tell rank 0 that this rank failed."""
        text = f"{type(error).__name__}: {error}"
        with contextlib.suppress(OSError):
            self._link.send({"failed": text, "is_usage": isinstance(error, UsageError)})

    def pass_on_stop(self) -> None:
        """Tell rank 0 that this rank was asked to stop, so that it gives back the trial."""
        with contextlib.suppress(OSError):
            self._link.send({"stop": True})

    def wait_for_dismissal(self) -> None:
        """Wait a while until rank 0 ends, because this rank has failed and rank 0 may fail in the same way."""
        end_s = time.monotonic() + LEAVE_S
        with contextlib.suppress(queue.Empty, Dismissed):
            while True:
                self._checked(self._inbox.get(timeout=max(0.0, end_s - time.monotonic())))

    def _is_abandoned(self) -> bool:
        end_s = time.monotonic() + LEAVE_S
        try:
            while "abandon" not in self._inbox.get(timeout=max(0.0, end_s - time.monotonic()))[0]:
                pass
        except queue.Empty:
            return False
        return True

    def _expect(self, what: str) -> Received:
        received = self._next()
        said = received[0]
        if "abandon" in said:
            raise Abandoned
        if said.get("what") != what:
            raise self._out_of_step(what, said)
        return received

    def _out_of_step(self, what: str, said: Message) -> RankLost:
        there = said.get("what") or ", ".join(said)
        return RankLost(f"rank {self._member.rank} is not in step: it waits for {what!r}, and rank 0 sends {there!r}")

    def _next(self) -> Received:
        return self._checked(self._inbox.get())

    def _checked(self, received: Received) -> Received:
        if "close" in received[0]:
            raise Dismissed
        return received

    def _read(self) -> None:
        try:
            while not self._is_closing:
                received = self._link.receive()
                self._is_closing = "close" in received[0]
                self._inbox.put(received)
        except _BROKEN:
            if not self._stop.requested:
                tell(f"rank 0 on {self._member.host} has ended; rank {self._member.rank} ends", "group", "error")
            os._exit(130 if self._stop.requested else 1)
        finally:
            self._link.close()


# --- Meeting


def lead(member: Member, name: str) -> tuple[Leader, str]:
    """Wait for the other ranks; return the group, and the address for JAX.

    Args:
        member: This process, rank 0.
        name: A name that all processes of the group have, and no others.

    Raises:
        RankLost: the port is taken, or a rank does not come.
    """
    host = f"[{member.host}]" if ":" in member.host else member.host
    jax_address = f"{host}:{_free_port()}"
    links: dict[int, _Link] = {}
    hosts = {0: socket.gethostname()}
    end_s = time.monotonic() + JOIN_S
    try:
        server = _listen(member)
    except OSError as error:
        raise RankLost(
            f"rank 0 cannot listen on port {member.port}: {error.strerror}; pass another port in `coordinator` on all "
            "hosts"
        ) from None
    with server:
        while len(links) < member.ranks - 1:
            server.settimeout(max(0.1, end_s - time.monotonic()))
            try:
                link = _Link(server.accept()[0])
            except TimeoutError:
                for link in links.values():
                    link.close()
                missing = sorted({*range(1, member.ranks)} - links.keys())
                ranks = ", ".join(str(rank) for rank in missing)
                raise RankLost(
                    f"rank {ranks} did not connect to rank 0 at {member.host}:{member.port} within {JOIN_S:.0f} s: "
                    "start this command on all hosts, and let them reach this port"
                ) from None
            rank, host = _greet(link, member, name, links, jax_address)
            if rank is None:
                link.close()
            else:
                links[rank], hosts[rank] = link, host
    return Leader(dict(sorted(links.items())), [hosts[rank] for rank in range(member.ranks)]), jax_address


def follow(member: Member, name: str, stop: Stop) -> tuple[Follower, str]:
    """Connect to rank 0; return the group, and the address for JAX.

    Args:
        member: This process.
        name: As in `lead`.
        stop: Whether this process was asked to stop.

    Raises:
        RankLost: rank 0 cannot be reached.
        UsageError: rank 0 does not expect this process.
        KeyboardInterrupt: this process was asked to stop.
    """
    mine = {"rank": member.rank, "ranks": member.ranks, "name": name, "host": socket.gethostname()}
    end_s = time.monotonic() + JOIN_S
    while True:
        try:
            link = _Link(socket.create_connection((member.host, member.port), timeout=_HANDSHAKE_S))
            try:
                link.send(mine)
                said, _ = link.receive()
                refused, address = said.get("refused"), said.get("jax")
                if not isinstance(address, str):
                    raise ValueError("not rank 0")
            except _BROKEN:
                link.close()
                raise
            break
        except _BROKEN as error:  # rank 0 may start later, or be busy with a stranger
            if stop.requested:
                raise KeyboardInterrupt from None
            if time.monotonic() > end_s:
                raise RankLost(
                    f"rank {member.rank} cannot connect to rank 0 at {member.host}:{member.port}: "
                    f"{getattr(error, 'strerror', None) or 'it does not answer'}; start this command on all hosts, and "
                    "let them reach this port"
                ) from None
            time.sleep(_RETRY_S)
    if refused is not None:
        link.close()
        raise UsageError(f"rank 0 at {member.host}:{member.port} refuses rank {member.rank}: {refused}")
    return Follower(link, member, stop), address


def _greet(
    link: _Link, member: Member, name: str, links: Mapping[int, _Link], jax_address: str
) -> tuple[int | None, str]:
    """Return the rank and the host of a process that has connected; no rank if it is none of the group's."""
    try:
        said, _ = link.receive()
        refusal = _refusal(said, member, name, links)
        link.send({"refused": refusal, "jax": jax_address})
    except _BROKEN:
        return None, ""
    return (None, "") if refusal is not None else (said["rank"], str(said.get("host")))


def _refusal(said: Message, member: Member, name: str, links: Mapping[int, _Link]) -> str | None:
    """Return why a process that has connected is not one of the group's; None if it is."""
    for what, value in (("ranks", member.ranks), ("name", name)):
        if said.get(what) != value:
            return f"it has {what} {said.get(what)!r}, rank 0 has {value!r}"
    rank = said.get("rank")
    if not isinstance(rank, int) or not 0 < rank < member.ranks:
        return f"its rank must be from 1 to {member.ranks - 1}: got {rank!r}"
    return f"another process has its rank {rank}" if rank in links else None


def _listen(member: Member) -> socket.socket:
    if member.is_on_one_machine:
        family = socket.AF_INET6 if ":" in member.host else socket.AF_INET
        return socket.create_server((member.host, member.port), family=family)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", member.port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", member.port))


def _free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]
