"""The file system of a folder, from the kernel's table of mounts; Linux only."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_TABLE = Path("/proc/self/mountinfo")
_NETWORK = {
    *("9p", "afs", "beegfs", "ceph", "cifs", "fhgfs", "gfs", "gfs2", "glusterfs", "gpfs", "lustre", "mmfs", "ncpfs"),
    *("nfs", "nfs4", "ocfs2", "orangefs", "panfs", "pvfs2", "quobyte", "smb3", "smbfs", "vboxsf", "virtiofs"),
    *("weka", "wekafs"),
}
_NETWORK_FUSE = ("beegfs", "ceph", "gluster", "juicefs", "moose", "rclone", "s3fs", "sshfs", "weka")
_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """A mounted file system.

    Attributes:
        point: The folder at which it is mounted.
        kind: Its type, such as `ext4` or `nfs4`.
    """

    point: Path
    kind: str

    @property
    def is_network(self) -> bool:
        """Whether other machines can mount it at the same time."""
        if self.kind.startswith("fuse."):
            return self.kind.removeprefix("fuse.").startswith(_NETWORK_FUSE)
        return self.kind in _NETWORK


def parse_mounts(table: str) -> list[Mount]:
    r"""Return the mounts of a table in the format of `/proc/self/mountinfo`, which writes blanks as `\040`."""
    mounts: list[Mount] = []
    for line in table.splitlines():
        before, separator, after = line.partition(" - ")
        fields = before.split(" ")
        if separator and len(fields) >= 6:
            mounts.append(Mount(Path(_unescaped(fields[4])), _unescaped(after.split(" ")[0])))
    return mounts


def mount_of(path: Path, mounts: Iterable[Mount]) -> Mount | None:
    """Return the mount that an absolute path without symbolic links is on; of mounts at one point, the last."""
    found = None
    for mount in mounts:
        deeper = found is None or len(mount.point.parts) >= len(found.point.parts)
        if deeper and path.is_relative_to(mount.point):
            found = mount
    return found


def network_mount(path: Path) -> Mount | None:
    """Return the network file system that a path is on; None if it is on a local one, or if that is unknown."""
    try:
        table = _TABLE.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None
    found = mount_of(path.resolve(), parse_mounts(table))
    return found if found is not None and found.is_network else None


def _unescaped(field: str) -> str:
    return _ESCAPED.sub(lambda found: chr(int(found[1], 8)), field)
