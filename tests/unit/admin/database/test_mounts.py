"""Network file systems in the kernel's table of mounts."""

from pathlib import Path

import pytest

from tuner.admin.database import mounts
from tuner.admin.database.mounts import Mount, mount_of, network_mount, parse_mounts

TABLE = r"""
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
40 27 0:40 / /home rw,relatime shared:2 master:1 - nfs4 files:/home rw,vers=4.2
41 40 8:1 / /home/local rw - xfs /dev/sda1 rw
42 27 0:42 / /home2 rw - lustre 10.0.0.1@tcp:/fs rw,flock
43 27 0:43 / /my\040data rw - cifs //files/data rw
44 27 0:44 / /mnt rw - ext4 /dev/sdb rw
45 27 0:45 / /mnt rw - fuse.sshfs me@files: rw
46 27 0:46 / /disk rw - fuse.ntfs-3g /dev/sdc rw
a damaged line
""".lstrip()


@pytest.mark.parametrize(
    ("path", "kind", "is_network"),
    [
        ("/var/tmp/db", "ext4", False),
        ("/home", "nfs4", True),
        ("/home/me/db", "nfs4", True),
        ("/home/local/db", "xfs", False),
        ("/home2/db", "lustre", True),
        ("/home3/db", "ext4", False),  # /home and /home2 are not above it
        ("/my data/db", "cifs", True),
        ("/mnt/db", "fuse.sshfs", True),  # mounted over the other one
        ("/disk/db", "fuse.ntfs-3g", False),
    ],
)
def test_the_file_system_of_a_folder(path: str, kind: str, is_network: bool) -> None:
    found = mount_of(Path(path), parse_mounts(TABLE))
    assert found is not None
    assert (found.kind, found.is_network) == (kind, is_network)


def test_a_table_has_one_mount_a_line() -> None:
    assert len(parse_mounts(TABLE)) == 9
    assert parse_mounts(TABLE)[2] == Mount(Path("/home"), "nfs4")


def test_links_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "mountinfo"
    remote = tmp_path / "remote"
    table.write_text(f"1 1 0:1 / / rw - ext4 /dev/vda rw\n2 1 0:2 / {remote} rw - beegfs beegfs rw\n")
    monkeypatch.setattr(mounts, "_TABLE", table)
    remote.mkdir()
    (tmp_path / "link").symlink_to(remote)

    assert network_mount(tmp_path / "link" / "db") == Mount(remote, "beegfs")
    assert network_mount(tmp_path / "db") is None


def test_without_a_table_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "_TABLE", tmp_path / "none")
    assert network_mount(tmp_path) is None
