"""A real Slurm of several nodes on this machine, for tests: munged, slurmctld and one slurmd for each node."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

PROGRAMS = {name: shutil.which(name, path="/usr/sbin:/usr/bin") for name in ("munged", "slurmctld", "slurmd", "sbatch")}
REQUEUE_S = 5
"""Seconds after which Slurm starts a job again that was given back; by default two minutes."""

CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire={requeue_s}
SlurmctldPort={port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SwitchType=switch/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1
ReturnToService=2
KillWait=5
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=off
"""


def reason_to_skip() -> str | None:
    """Return why no Slurm can be started here; None if it can."""
    missing = [name for name, path in PROGRAMS.items() if path is None]
    if missing:
        return f"no {missing[0]} (Debian: apt-get install slurmctld slurmd slurm-client munge)"
    return None if os.geteuid() == 0 else "only root may start a Slurm"


class SlurmCluster:
    """A Slurm of several nodes with two CPUs and one pretended GPU each; partitions `main` and, preempting it, `high`.

    Args:
        folder: An empty folder for its files.
        nodes: The number of nodes.
    """

    def __init__(self, folder: Path, nodes: int) -> None:
        self.folder, self.nodes = folder, nodes
        self.conf = folder / "slurm.conf"
        self.processes: list[subprocess.Popen[bytes]] = []

    @property
    def env(self) -> Mapping[str, str]:
        """What Slurm's commands need in their environment."""
        return {"SLURM_CONF": str(self.conf)}

    def start(self) -> None:
        """Start all daemons, and wait until all nodes are idle."""
        for name in ("munge", "state", "spool"):
            (self.folder / name).mkdir()
        self.folder.chmod(0o755)
        munge = self.folder / "munge"
        munge.chmod(0o711)
        key = munge / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        files = {"key-file": key, **{f"{name}-file": munge / name for name in ("pid", "log", "seed")}}
        options = [f"--{name}={path}" for name, path in files.items()]
        self._start("munged", "--foreground", "--force", f"--socket={munge / 'socket'}", *options)
        self._wait(lambda: (munge / "socket").exists())
        self._write_conf()
        self._start("slurmctld", "-D", "-i", "-f", str(self.conf))
        for number in range(1, self.nodes + 1):
            (self.folder / "spool" / f"n{number}").mkdir()
            self._start("slurmd", "-D", "-N", f"n{number}", "-f", str(self.conf))
        self._wait(lambda: self.ask("sinfo", "-h", "-N", "-p", "main", "-o", "%T").split() == ["idle"] * self.nodes)

    def _write_conf(self) -> None:
        host = socket.gethostname().partition(".")[0]
        first, *ports = free_ports(self.nodes + 1)
        memory = 1000
        device = self.folder / "nvidia0"
        # slurmd wants a character device: a twin of /dev/null.
        os.mknod(device, 0o600 | 0o020000, os.makedev(1, 3))
        nodes = [
            f"NodeName=n{at} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 Boards=1 SocketsPerBoard=1 "
            f"CoresPerSocket=2 ThreadsPerCore=1 RealMemory={memory} Gres=gpu:1 State=UNKNOWN"
            for at, port in enumerate(ports, 1)
        ]
        given = {"host": host, "folder": self.folder, "port": first, "requeue_s": REQUEUE_S}
        self.conf.write_text(CONF.format(nodes="\n".join(nodes), **given))
        gres = [f"NodeName=n{at} Name=gpu File={device}" for at in range(1, self.nodes + 1)]
        self.conf.with_name("gres.conf").write_text("\n".join(gres) + "\n")

    def _start(self, name: str, *options: str) -> None:
        program = PROGRAMS[name]
        assert program is not None
        with (self.folder / f"{name}.out").open("ab") as out:
            self.processes.append(
                subprocess.Popen([program, *options], stdout=out, stderr=out, env={**os.environ, **self.env})
            )

    def ask(self, *words: str) -> str:
        """Run one of Slurm's commands; return its output."""
        done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **self.env}, timeout=60)
        return done.stdout

    def states(self) -> dict[str, str]:
        """Return the state of each element of each job that is not over."""
        lines = self.ask("squeue", "--noheader", "--array", "--format=%i %T").splitlines()
        return {name: state for name, state in (line.split() for line in lines)}

    def _wait(self, condition: object, deadline_s: float = 120.0) -> None:
        assert callable(condition)
        end_s = time.monotonic() + deadline_s
        while not condition():
            said = {path.name: path.read_text()[-500:] for path in self.folder.glob("*.out")}
            assert time.monotonic() < end_s, f"Slurm does not start: {said}"
            time.sleep(0.1)

    def end(self) -> None:
        """Cancel all jobs and end all daemons."""
        with contextlib.suppress(Exception):
            self.ask("scancel", "--user=root")
            self._wait(lambda: not self.states(), 30.0)
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()


def free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def running(folder: Path, nodes: int) -> Iterator[SlurmCluster]:
    """Run a Slurm while the body runs."""
    cluster = SlurmCluster(folder, nodes)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.end()
