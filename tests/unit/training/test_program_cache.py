"""Compiled programs on disk: whole or not there, waited for, limited in size, and in a folder of nobody else."""

from __future__ import annotations

import errno
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from tuner.training.loop import program_cache
from tuner.training.loop.program_cache import ProgramCache, kind_of_machine, trim_cache

KEY = "jit_train_step-" + "0123456789abcdef" * 4
OTHER = "jit_eval_step-" + "0123456789abcdef" * 4
MOST_S = 300.0


class Opener:
    """Opens caches, each like one of another process, and closes them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.opened: list[ProgramCache] = []

    def __call__(self, kind: str = "kind", limit: int = 10**6, wait_s: float = MOST_S) -> ProgramCache:
        self.opened.append(ProgramCache(self.root, kind, limit, wait_s=wait_s))
        return self.opened[-1]


@pytest.fixture
def opener(tmp_path: Path) -> Iterator[Opener]:
    made = Opener(tmp_path / "artifacts" / "compiled-1000")
    yield made
    for cache in made.opened:
        cache.close()


class Waiter(threading.Thread):
    """Another worker that asks for a program."""

    def __init__(self, cache: ProgramCache, key: str = KEY) -> None:
        super().__init__(daemon=True)
        self.cache, self.key, self.found = cache, key, b"?"
        self.start()

    def run(self) -> None:
        self.found = self.cache.get(self.key)

    def result(self) -> bytes | None:
        self.join(MOST_S)
        assert not self.is_alive()
        return self.found


def stored(cache: ProgramCache) -> Path:
    """Return the only file of a program."""
    (file,) = (path for path in cache.folder.iterdir() if path.suffix != ".lock" and not path.name.startswith("."))
    return file


# --- What is stored is what is found


@pytest.mark.parametrize("key", [KEY, "x" * 300 + KEY])
def test_a_program_is_found_by_other_processes_and_leaves_nothing_but_itself(opener: Opener, key: str) -> None:
    ours, theirs = opener(), opener()
    assert ours.get(key) is None
    ours.put(key, b"program")
    assert theirs.get(key) == ours.get(key) == b"program"
    assert list(ours.folder.iterdir()) == [stored(ours)]


def damaged(content: bytes) -> list[bytes]:
    half = len(content) // 2
    return [b"", content[:1], content[:half], content[:-1], content[:half] + b"?" + content[half + 1 :], content + b"?"]


@pytest.mark.parametrize("which", range(6))
def test_a_damaged_file_is_a_miss_without_a_warning_and_is_replaced(opener: Opener, which: int) -> None:
    ours, theirs = opener(), opener()
    ours.get(KEY)
    ours.put(KEY, b"a program of some length")
    file = stored(ours)
    file.write_bytes(damaged(file.read_bytes())[which])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert theirs.get(KEY) is None
        theirs.put(KEY, b"again")
    assert ours.get(KEY) == b"again"


def test_the_file_of_another_program_is_a_miss(opener: Opener) -> None:
    cache = opener()
    cache.get(OTHER)
    cache.put(OTHER, b"program")
    stored(cache).rename(cache.folder / KEY)
    assert cache.get(KEY) is None


def test_readers_see_the_old_file_until_the_new_one_is_complete(
    opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = opener()
    cache.put(KEY, b"old")
    seen: list[bytes | None] = []
    replace = os.replace

    def look_and_replace(*args: Any, **options: Any) -> None:
        seen.append(opener().get(KEY))
        replace(*args, **options)

    monkeypatch.setattr(os, "replace", look_and_replace)
    cache.put(KEY, b"new")
    assert [*seen, cache.get(KEY)] == [b"old", b"new"]


def test_a_full_disk_is_told_once_and_leaves_no_part_of_a_file(
    small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = ProgramCache(small_disk / "compiled", "kind", 10**9)
    try:
        for key in (KEY, OTHER):
            assert cache.get(key) is None
            cache.put(key, os.urandom(2**21))
            cache.release()
        assert all(path.suffix == ".lock" for path in cache.folder.iterdir())
        assert capsys.readouterr().err.count("cannot store compiled programs") == 1
        cache.put(KEY, b"small")
        assert cache.get(KEY) == b"small"
    finally:
        cache.close()


# --- Who waits for whom


def test_others_wait_for_the_one_that_compiles(opener: Opener) -> None:
    compiling = opener()
    assert compiling.get(KEY) is None
    waiters = [Waiter(opener()) for _ in range(7)]
    other = Waiter(opener(), OTHER)
    assert other.result() is None  # nobody compiles that one
    assert all(waiter.is_alive() for waiter in waiters)
    compiling.put(KEY, b"program")
    assert [waiter.result() for waiter in waiters] == [b"program"] * 7
    assert [path.name for path in compiling.folder.iterdir() if KEY in path.name] == [KEY]


def test_a_waiter_takes_over_when_the_compiler_dies(opener: Opener) -> None:
    dying = opener()
    assert dying.get(KEY) is None
    first = Waiter(opener())
    dying.forget()  # the kernel closes all files of a process that dies
    assert first.result() is None
    second = Waiter(opener())
    first.cache._release(first.ident or 0, is_stored=False)
    assert second.result() is None


def test_nobody_waits_again_for_a_program_that_cannot_be_stored(opener: Opener) -> None:
    first, second, third = opener(), opener(), opener()
    assert first.get(KEY) is None
    waiter = Waiter(second)
    first.release()
    assert waiter.result() is None
    assert third.get(KEY) is None  # although the second has just begun


def test_a_thread_never_waits_with_a_lock(opener: Opener) -> None:
    """Two workers that need each other's programs."""
    ours, theirs = opener(), opener()
    has_key, gives_up = threading.Event(), threading.Event()

    def hold() -> None:
        ours.get(KEY)
        has_key.set()
        gives_up.wait(MOST_S)
        ours.release()

    holder = threading.Thread(target=hold, daemon=True)
    holder.start()
    assert has_key.wait(MOST_S)
    assert theirs.get(OTHER) is None
    waiter = Waiter(ours, OTHER)
    threading.Timer(0.2, gives_up.set).start()
    assert theirs.get(KEY) is None  # waits for ours, after it has given up OTHER
    assert gives_up.is_set()
    holder.join(MOST_S)
    assert waiter.result() is None


def test_a_wait_has_a_limit(opener: Opener) -> None:
    assert opener().get(KEY) is None
    late = opener(wait_s=0.05)
    assert late.get(KEY) is None
    late.put(KEY, b"program")
    assert opener().get(KEY) == b"program"


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_each_compiles_at_once(opener: Opener, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def no_lock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(program_cache.fcntl, "flock", no_lock)
    ours, theirs = opener(), opener()
    assert (ours.get(KEY), theirs.get(KEY)) == (None, None)
    ours.put(KEY, b"program")
    theirs.put(KEY, b"program")
    assert opener().get(KEY) == b"program"


def test_a_folder_that_somebody_deletes_is_a_miss(opener: Opener) -> None:
    cache = opener()
    cache.folder.rmdir()
    assert cache.get(KEY) is None
    cache.put(KEY, b"program")
    assert cache.get(KEY) is None


def test_the_processes_of_one_program_do_not_wait_for_other_workers(
    opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert opener().get(KEY) is None
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    many = opener()
    assert many.get(KEY) is None
    assert many._held == {}


# --- Whose folder it is


def world_writable(folder: Path) -> None:
    folder.mkdir(parents=True)
    folder.chmod(0o777)


def group_writable(folder: Path) -> None:
    folder.mkdir(parents=True)
    folder.chmod(0o720)


def link(folder: Path) -> None:
    (folder.parent / "elsewhere").mkdir(parents=True)
    folder.symlink_to(folder.parent / "elsewhere")


@pytest.mark.parametrize("make", [world_writable, group_writable, link])
@pytest.mark.parametrize("inner", [False, True])
def test_a_folder_that_others_may_write_to_is_refused(
    opener: Opener, make: Callable[[Path], None], inner: bool
) -> None:
    if inner:
        opener.root.mkdir(parents=True, mode=0o700)
    make(opener.root / "kind" if inner else opener.root)
    with pytest.raises(OSError, match=r"others may write|symbolic|Not a directory"):
        opener()


def test_a_folder_of_another_user_is_refused(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    opener.root.mkdir(parents=True, mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(PermissionError, match="another user owns it"):
        opener()


def test_a_new_folder_is_closed_to_others_whatever_the_umask(opener: Opener) -> None:
    before = os.umask(0)
    try:
        cache = opener()
        cache.put(KEY, b"program")
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o077 for path in (opener.root, cache.folder, stored(cache))}
    assert modes == {0}


def test_a_folder_that_is_put_in_place_of_ours_later_is_not_read(opener: Opener) -> None:
    cache = opener()
    cache.put(KEY, b"ours")
    cache.folder.rename(opener.root / "moved")
    cache.folder.mkdir()
    (cache.folder / KEY).write_bytes((opener.root / "moved" / KEY).read_bytes().replace(b"ours", b"evil"))
    assert cache.get(KEY) == b"ours"


# --- Which machines share


CPUINFO = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 85
model name\t: A name
cpu MHz\t\t: 2000.1
flags\t\t: fpu sse avx2

processor\t: 1
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 85
cpu MHz\t\t: 3000.2
flags\t\t: avx2 fpu sse
"""


def test_the_processor_is_told_by_its_instructions(tmp_path: Path) -> None:
    def processor(text: str) -> list[str]:
        (tmp_path / "cpuinfo").write_text(text)
        return program_cache._processor(tmp_path / "cpuinfo")

    same = re.sub("MHz.*", "MHz : 1.0", CPUINFO).replace("A name", "Other")
    assert processor(CPUINFO) == processor(same)
    assert processor(CPUINFO) != processor(CPUINFO.replace("avx2", "avx512f"))
    assert processor(CPUINFO) != processor(CPUINFO.replace(": 85", ": 86"))
    arm = "processor : 0\nBogoMIPS : 1\nFeatures : fp asimd sve\nCPU implementer : 0x41\n"
    assert processor(arm) != processor(arm.replace(" sve", ""))
    assert processor("nothing known") == [program_cache.platform.node()]


def test_other_versions_processors_or_devices_have_other_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = [kind_of_machine(), kind_of_machine()]
    assert kinds[0] == kinds[1]
    for owner, name, value in [
        (program_cache, "_processor", lambda: ["flags: avx512f"]),
        (program_cache.importlib.metadata, "version", lambda name: f"9.{len(name)}"),
        (jax, "default_backend", lambda: "gpu"),
    ]:
        with monkeypatch.context() as changed:
            changed.setattr(owner, name, value)
            kinds.append(kind_of_machine())
            if name == "default_backend":
                changed.setattr(jax, "local_devices", list)
                kinds.append(kind_of_machine())
    assert len(set(kinds)) == 5
    assert all(re.fullmatch(r"jax-[\w.]+-jaxlib-[\w.]+-(cpu|gpu)-[0-9a-f]{16}", kind) for kind in kinds)


# --- How large it becomes


def test_all_kinds_together_keep_to_the_limit_and_what_is_used_stays(opener: Opener) -> None:
    old, new = opener("old", 1000), opener("new", 1000)
    for at, (cache, key) in enumerate([(old, KEY), (old, OTHER), (new, KEY), (new, OTHER)]):
        cache.put(key, bytes(300))
        os.utime(cache.folder / key, (at, at))
    assert old.get(KEY) is not None  # the oldest, but used now
    assert (old.folder / KEY).stat().st_mtime > 3  # whatever the file system records of reads
    new.trim()
    assert [path.parent.name for path in sorted(opener.root.rglob("jit*"))] == ["new", "old"]
    assert (old.get(KEY), new.get(OTHER)) == (bytes(300), bytes(300))


def test_a_program_above_the_limit_is_not_stored(opener: Opener) -> None:
    cache = opener(limit=10)
    cache.put(KEY, bytes(11))
    assert cache.get(KEY) is None


def test_files_used_least_recently_are_deleted_first(tmp_path: Path) -> None:
    for name, at in (("b", 3), ("a", 1), ("inner/c", 2), ("d", 4), ("e", 5)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (at, at))
    os.utime(tmp_path / "a", (6, 1))  # read since, though the oldest
    left: list[str] = []
    for limit in (500, 499, 250):  # the second frees down to 449 bytes
        trim_cache(tmp_path, limit)
        left.append("".join(sorted(path.name for path in tmp_path.rglob("?"))))
    assert left == ["abcde", "abde", "ae"]
    trim_cache(tmp_path / "missing", 1)
