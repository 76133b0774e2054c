"""Connects the JAX of several processes, which then see each other's devices."""

from __future__ import annotations

import contextlib
from typing import Protocol

import jax

from tuner.errors import RankLost
from tuner.training.mesh import Layout

_START_S = 300
"""Seconds in which all processes must have connected."""
_SILENT_S = 60
"""Seconds after which JAX ends all processes if one of them cannot be reached."""
_END_S = 20
"""Seconds that a process waits for the others at the end."""


class Member(Protocol):
    """A process of a group; see `tuner.worker.group.Member`."""

    @property
    def ranks(self) -> int: ...
    @property
    def rank(self) -> int: ...
    @property
    def is_on_one_machine(self) -> bool: ...


def connect(address: str, member: Member) -> None:
    """Connect this process; call it before anything uses a device.

    Args:
        address: `HOST:PORT` of rank 0, on which JAX listens.
        member: This process.

    Raises:
        RankLost: the processes could not be connected.
    """
    # JAX would replace the handler of SIGTERM.
    jax.config.update("jax_enable_preemption_service", False)
    # JAX's own detection would give each process of Slurm one GPU only.
    try:
        jax.distributed.initialize(
            address,
            member.ranks,
            member.rank,
            coordinator_bind_address=address if member.is_on_one_machine else None,
            cluster_detection_method="deactivate",
            initialization_timeout=_START_S,
            heartbeat_timeout_seconds=_SILENT_S,
            shutdown_timeout_seconds=_END_S,
        )
    except RuntimeError as error:
        first = str(error).strip().partition("\n")[0]
        raise RankLost(
            f"rank {member.rank} cannot connect JAX at {address}: {first}; all hosts must reach each other on all ports"
        ) from error


def disconnect() -> None:
    """Disconnect this process, when the others do so as well."""
    with contextlib.suppress(Exception):  # another one has ended already
        jax.distributed.shutdown()


def group_layout() -> Layout:
    """Return the layout of trials on the devices of all processes."""
    return Layout(jax.devices())
