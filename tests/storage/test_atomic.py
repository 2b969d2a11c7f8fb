# SPDX-License-Identifier: Apache-2.0
import errno
import fcntl
import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from samples import small_archive

from tersor.errors import InputError
from tersor.storage import atomic, container
from tersor.storage.atomic import check_writable, replacing
from tersor.storage.opened import open_file


@pytest.fixture
def earlier(tmp_path):
    """A file from before, which must survive every failure."""
    path = tmp_path / "model.tersor"
    path.write_text("earlier")
    return path


def untouched(path):
    return path.read_text() == "earlier" and list(path.parent.iterdir()) == [path]


def test_the_file_is_replaced_when_it_is_complete(earlier):
    with replacing(earlier) as temporary:
        temporary.write_text("new")
        assert earlier.read_text() == "earlier"
    assert earlier.read_text() == "new"
    assert list(earlier.parent.iterdir()) == [earlier]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
def test_failures_leave_nothing_behind(earlier, error):
    with pytest.raises(error), replacing(earlier) as temporary:
        temporary.write_text("half")
        raise error
    assert untouched(earlier)


def test_a_full_disk_is_reported_for_the_target(earlier, monkeypatch):
    def full(archive):
        yield b"the first section"
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(container, "unfactored_sections", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        container.write(earlier, small_archive())
    assert caught.value.filename == str(earlier)
    assert untouched(earlier)


def test_what_fails_last_is_undone(earlier, monkeypatch):
    def fail(*args):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        container.write(earlier, small_archive())
    assert untouched(earlier)


def test_long_names_are_fine(tmp_path):
    path = tmp_path / ("m" * 248 + ".tersor")
    container.write(path, small_archive())
    assert open_file(path).source_bytes == 600


def test_outputs_that_cannot_be_are_refused(earlier, monkeypatch):
    folder = earlier.parent
    with pytest.raises(InputError, match="is a directory"):
        check_writable(folder)
    with pytest.raises(InputError, match="does not exist; create it first"):
        check_writable(folder / "none" / "model.tersor")
    with pytest.raises(InputError, match="is the input itself"):
        check_writable(earlier, earlier)
    with pytest.raises(InputError, match="not a regular file"), replacing("/dev/null"):
        pass
    assert untouched(earlier)


def test_folders_that_cannot_be_written_to_are_refused():
    """Not even by the superuser, for whom permissions do not count."""
    with pytest.raises(InputError, match="the folder /proc cannot be written to"):
        check_writable(Path("/proc/model.tersor"))


def test_a_link_to_the_input_is_the_input(earlier):
    link = earlier.with_name("link")
    link.symlink_to(earlier)
    with pytest.raises(InputError, match="is the input itself"):
        check_writable(link, earlier)


@pytest.mark.slow
def test_killed_commands_leave_nothing_torn_and_go_on():
    """A few of the moments of benchmarks/robustness/kills.py."""
    pytest.importorskip("accelerate", reason="fine-tuning needs its extra")
    support = Path(__file__).parents[1] / "support"
    paths = {"PYTHONPATH": str(support), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, support / "killing.py", "20", "0"]
    result = subprocess.run(arguments, env=os.environ | paths, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for row in json.loads(result.stdout):
        assert row["kills"] >= 4 and row["resumed"] > 0
        assert (row["torn"], row["different"], row["left"]) == (0, 0, 0), row


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_files_saved_at_once_do_not_mix(tmp_path):
    """By threads of one process, under names that begin alike: each is its own, and whole."""
    stem, together = "a_name_of_more_than_forty_characters_at_epoch", Barrier(8)

    def save(number):
        for turn in range(20):
            with replacing(tmp_path / f"{stem}{number}") as temporary:
                together.wait(60)
                temporary.write_text(f"{number}, {turn}")
            assert (tmp_path / f"{stem}{number}").read_text() == f"{number}, {turn}"

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(save, range(8)))
    assert len(names(tmp_path)) == 8


def test_one_file_saved_by_many_at_once_is_that_of_one(earlier):
    together = Barrier(8)

    def save(number):
        with replacing(earlier) as temporary:
            together.wait(60)
            temporary.write_text(str(number) * 100_000)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(save, range(8)))
    assert set(Counter(earlier.read_text()).values()) == {100_000}
    assert names(earlier.parent) == [earlier.name]


@pytest.fixture
def writer(earlier):
    """A process that has this one's number, as in another container, and does not end its save."""
    code = (
        "import os, sys; from pathlib import Path; from tersor.storage.atomic import replacing\n"
        f"os.getpid = lambda: {os.getpid()}\n"
        f"with replacing({str(earlier)!r}) as temporary:\n"
        "    temporary.write_text('of the other'); print(flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as process:
        process.stdout.readline()
        yield process
        process.kill()


def test_what_another_container_writes_is_left_alone(earlier, writer):
    container.write(earlier, small_archive())
    assert len(names(earlier.parent)) == 2
    writer.communicate()
    assert writer.returncode == 0 and earlier.read_text() == "of the other"
    assert names(earlier.parent) == [earlier.name]


def test_what_was_killed_is_removed_whatever_number_it_had(earlier, writer):
    writer.kill()
    writer.wait()
    (stray,) = set(names(earlier.parent)) - {earlier.name}
    assert str(os.getpid()) not in stray.split(".")
    with replacing(earlier.with_name("other.tersor")) as temporary:
        temporary.write_text("other")
    assert stray in names(earlier.parent)
    container.write(earlier, small_archive())
    assert names(earlier.parent) == [earlier.name, "other.tersor"]


def test_files_of_other_machines_go_when_they_are_old(earlier, monkeypatch):
    """Locks are not always known across a network; nor are there any everywhere."""
    stray = earlier.with_name(f".model.tersor.another1-{'0' * 16}.tmp")
    own = earlier.with_name(f".model.tersor.{atomic._machine()}-{'0' * 16}.tmp")

    def none(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    for locks in (fcntl.flock, none):
        monkeypatch.setattr(fcntl, "flock", locks)
        stray.touch()
        own.touch()
        container.write(earlier, small_archive())
        assert stray.exists() and own.exists() == (locks is none)
        for path in (stray, own):
            path.touch()
            os.utime(path, (0, 0))
        container.write(earlier, small_archive())
        assert names(earlier.parent) == [earlier.name]


def test_a_file_taken_for_a_stray_before_it_is_locked_is_made_anew(earlier, monkeypatch):
    """Another process looks at it between its making and its locking."""
    held, lock = [], fcntl.flock

    def late(*args):
        if not held:
            path = next(earlier.parent.glob(".model.tersor.*"))
            held.append(os.open(path, os.O_RDWR))
            lock(held[0], args[1])
        lock(*args)

    monkeypatch.setattr(fcntl, "flock", late)
    with replacing(earlier) as temporary:
        temporary.write_text("new")
        assert names(earlier.parent) == [temporary.name, earlier.name]
    assert earlier.read_text() == "new"
    os.close(held[0])


def test_what_only_looks_like_a_temporary_file_is_left_alone(earlier):
    machine = atomic._machine()
    others = [
        f".other.tersor.{machine}-{'0' * 16}.tmp",
        f".model.tersor.{machine}-{'x' * 16}.tmp",
        f".model.tersor.{machine}-{'0' * 15}.tmp",
        f"model.tersor.{machine}-{'0' * 16}.tmp",
        ".model.tersor.1.tmp",
        ".model.tersor.draft.tmp",
    ]
    for name in others:
        earlier.with_name(name).write_text("half")
    container.write(earlier, small_archive())
    assert names(earlier.parent) == sorted([*others, earlier.name])


@pytest.mark.parametrize("name", ["a[b]*?.tersor", "ä" * 100, "\udcff.tersor", "new\nline", "**"])
def test_strays_of_odd_names_go_too(tmp_path, name):
    path = tmp_path / name
    stray = tmp_path / f".{name[:40]}.{atomic._machine()}-{'0' * 16}.tmp"
    stray.touch()
    container.write(path, small_archive())
    assert names(tmp_path) == [name]


def test_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "usual").touch()
    container.write(tmp_path / "model.tersor", small_archive())
    modes = {p.stat().st_mode for p in tmp_path.iterdir()}
    assert len(modes) == 1
