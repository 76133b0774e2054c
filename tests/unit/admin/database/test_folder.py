"""The folder of a database: modes, the lock, what an earlier server left."""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tuner.admin.database import folder as folder_module
from tuner.admin.database.folder import (
    DatabaseFolder,
    Lock,
    Record,
    check_folder,
    check_other_servers,
    create_folder,
    prepare_files,
    read_password,
    take_lock,
    write_private,
)
from tuner.admin.database.signals import StopAsked, StopSignals
from tuner.errors import UsageError

HERE = socket.gethostname()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def folder(tmp_path: Path) -> DatabaseFolder:
    made = DatabaseFolder(tmp_path / "db")
    create_folder(made, None)
    return made


@pytest.fixture
def ended_process() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def server(folder: DatabaseFolder) -> Iterator[subprocess.Popen[str]]:
    """A process in the folder of the data, whose number is in the file of a server."""
    folder.data.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", "print('ready', flush=True); input()"],
        cwd=folder.data,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    (folder.data / "postmaster.pid").write_text(f"{process.pid}\n{folder.data}\n")
    yield process
    process.communicate("\n")


def lock_of(folder: DatabaseFolder) -> Lock:
    with StopSignals() as signals:
        return take_lock(folder, signals)


def test_others_cannot_read_the_folder_or_a_file_whatever_the_umask_is(tmp_path: Path) -> None:
    folder = DatabaseFolder(tmp_path / "deep" / "db")
    before = os.umask(0)
    try:
        create_folder(folder, None)
        prepare_files(folder)
        folder.write_record(Record(HERE, 1, "127.0.0.1", 5432))
        os.close(lock_of(folder).descriptor)
    finally:
        os.umask(before)
    assert mode(folder.path) == 0o700
    assert {mode(path) for path in folder.path.iterdir()} == {0o600}
    assert {path.name for path in folder.path.iterdir()} == {
        *("password", "superuser-password", "server.json", "tuner-database.lock"),
    }


def test_a_folder_and_passwords_that_were_opened_to_others_are_closed(tmp_path: Path) -> None:
    folder = DatabaseFolder(tmp_path)
    folder.path.chmod(0o755)
    folder.password.write_text("chosen by hand\n")
    folder.password.chmod(0o644)

    create_folder(folder, None)
    prepare_files(folder)

    assert mode(folder.path) == 0o700
    assert mode(folder.password) == 0o600
    assert read_password(folder.password) == "chosen by hand"


def test_passwords_are_long_and_stay(folder: DatabaseFolder) -> None:
    prepare_files(folder)
    first = [read_password(path) for path in (folder.password, folder.superuser_password)]
    prepare_files(folder)
    assert [read_password(path) for path in (folder.password, folder.superuser_password)] == first
    assert len({*first}) == 2
    assert min(map(len, first)) >= 32


def test_an_empty_password_is_refused(folder: DatabaseFolder) -> None:
    folder.password.write_text("\n")
    with pytest.raises(UsageError, match=f"must have one line: got {folder.password}"):
        read_password(folder.password)


def test_no_file_is_read_through_a_link(folder: DatabaseFolder, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of another user")
    folder.password.symlink_to(tmp_path / "secret")
    with pytest.raises(UsageError, match="cannot read the file"):
        read_password(folder.password)


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "url"
    path.write_text("a longer text than the new one")
    path.chmod(0o644)
    write_private(path, "new")
    assert path.read_text() == "new"
    assert mode(path) == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("is_ours", [True, False])
def test_a_folder_must_be_empty_or_ours(folder: DatabaseFolder, is_ours: bool) -> None:
    check_folder(folder)
    (folder.path / "results.csv").touch()
    if is_ours:
        os.close(lock_of(folder).descriptor)
        check_folder(folder)
    else:
        with pytest.raises(UsageError, match=f"made: {folder.path} contains 'results.csv'"):
            check_folder(folder)


def test_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for path, where in ((file, ""), (file / "db", f" ({file / 'db'})")):
        said = f"^{re.escape(f'{file} is a file, not a folder{where}')}: pass a folder for the database$"
        with pytest.raises(UsageError, match=said):
            check_folder(DatabaseFolder(path))


def test_a_lock_lasts_as_long_as_a_process_that_inherits_it(folder: DatabaseFolder) -> None:
    lock = lock_of(folder)
    assert lock.is_held
    words = [sys.executable, "-c", "print('ready', flush=True); input()"]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[lock.descriptor], text=True
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        os.close(lock.descriptor)
        with pytest.raises(UsageError, match="another `tuner database` is starting or stopping"):
            lock_of(folder)
        child.communicate("\n")
    os.close(lock_of(folder).descriptor)


def test_a_running_server_is_named(folder: DatabaseFolder) -> None:
    lock = lock_of(folder)
    folder.write_record(Record("node7", 123, "127.0.0.1", 5544))
    folder.url.touch()
    message = rf"listens on 127.0.0.1, port 5544, of node7 \(process 123 of .*cat {folder.url}"
    with pytest.raises(UsageError, match=message):
        lock_of(folder)
    os.close(lock.descriptor)


def test_a_stop_is_heeded_while_the_server_of_a_killed_command_stops(
    folder: DatabaseFolder, ended_process: int
) -> None:
    lock = lock_of(folder)
    folder.write_record(Record(HERE, ended_process, "127.0.0.1", 5544))
    with StopSignals() as signals:
        signals.count = 1
        with pytest.raises(StopAsked):
            take_lock(folder, signals)
    os.close(lock.descriptor)


def test_a_server_that_outlives_its_command_is_named(
    folder: DatabaseFolder, ended_process: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the kernel does not stop it: elsewhere than on Linux."""
    monkeypatch.setattr(folder_module, "_DYING_S", 0.0)
    lock = lock_of(folder)
    folder.write_record(Record(HERE, ended_process, "127.0.0.1", 5544))
    folder.data.mkdir()
    (folder.data / "postmaster.pid").write_text("4711\n")
    with pytest.raises(UsageError, match="was killed, and the server still runs; stop it with `kill -INT 4711`"):
        lock_of(folder)
    os.close(lock.descriptor)


def test_a_damaged_record_is_none(folder: DatabaseFolder) -> None:
    assert folder.read_record() is None
    for text in ("", "[]", "{}", '{"host": "a", "command": 1, "address": "b", "port": "c"}'):
        folder.record.write_text(text)
        assert folder.read_record() is None
    record = Record("a", 1, "b", 2)
    folder.write_record(record)
    assert folder.read_record() == record


def test_a_server_of_someone_else_keeps_the_data(folder: DatabaseFolder, server: subprocess.Popen[str]) -> None:
    lock = lock_of(folder)
    with pytest.raises(UsageError, match=rf"that `tuner database` did not start \(process {server.pid}\)"):
        check_other_servers(folder, lock, is_network=False)
    os.close(lock.descriptor)


@pytest.mark.parametrize("is_held", [True, False])
def test_after_a_reboot_another_process_may_have_the_number(folder: DatabaseFolder, is_held: bool) -> None:
    folder.data.mkdir()
    left = folder.data / "postmaster.pid"
    left.write_text(f"{os.getpid()}\n")
    check_other_servers(folder, Lock(0, is_held), is_network=False)
    assert left.exists() is not is_held  # without a lock, Postgres decides


def test_the_file_of_a_dead_server_is_left_to_postgres(folder: DatabaseFolder, ended_process: int) -> None:
    folder.data.mkdir()
    left = folder.data / "postmaster.pid"
    left.write_text(f"{ended_process}\n")
    check_other_servers(folder, Lock(0, True), is_network=False)
    assert left.exists()


def test_on_a_network_file_system_a_server_of_another_machine_may_still_run(
    folder: DatabaseFolder, ended_process: int
) -> None:
    folder.write_record(Record("another-machine", 1, "127.0.0.1", 5432))
    check_other_servers(folder, Lock(0, True), is_network=True)  # it stopped cleanly
    folder.data.mkdir()
    (folder.data / "postmaster.pid").write_text(f"{ended_process}\n")
    check_other_servers(folder, Lock(0, True), is_network=False)
    for lock, is_network in ((Lock(0, True), True), (Lock(0, False), False)):
        with pytest.raises(UsageError, match=r"was last used on another-machine.*delete .*postmaster.pid"):
            check_other_servers(folder, lock, is_network)
    folder.write_record(Record(HERE, 1, "127.0.0.1", 5432))
    check_other_servers(folder, Lock(0, True), is_network=True)


def test_the_line_to_copy_quotes_the_path() -> None:
    folder = DatabaseFolder(Path("/my data/it's"))
    line = folder.export_line()
    shown = subprocess.run(
        ["bash", "-c", f"cat() {{ printf '<%s>' \"$@\"; }}; {line}; echo \"$TUNER_STORAGE\""],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shown.stdout == "</my data/it's/url>\n"
