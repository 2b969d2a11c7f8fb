import errno
import os
from pathlib import Path

import pytest
from killing import kill_while_saving
from samples import small_archive

from tersor.errors import InputError
from tersor.storage import container
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

    monkeypatch.setattr(container, "kept_sections", full)
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


def test_killed_processes_leave_nothing_for_long(tmp_path):
    """A few of the moments of benchmarks/kills.py: no file is broken, and the next save cleans."""
    found = kill_while_saving(tmp_path, kills=15, seed=0, elements=1 << 16)
    assert found.kills == 15 and found.during > 0
    assert (found.broken, found.left) == (0, 0)


def test_temporary_files_of_others_are_left_alone(earlier):
    """Of running processes, of other files, and what only looks like one."""
    ended = os.spawnlp(os.P_NOWAIT, "true", "true")
    os.waitpid(ended, 0)
    names = [
        f".model.tersor.{os.getppid()}.tmp",
        ".model.tersor.1.tmp",
        f".other.tersor.{ended}.tmp",
        ".model.tersor.draft.tmp",
        ".model.tersor.9999999999999999999.tmp",
        f"model.tersor.{ended}.tmp",
    ]
    for name in [*names, f".model.tersor.{ended}.tmp"]:
        earlier.with_name(name).write_text("half")
    container.write(earlier, small_archive())
    assert sorted(p.name for p in earlier.parent.iterdir()) == sorted([*names, earlier.name])
