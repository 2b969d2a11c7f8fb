# SPDX-License-Identifier: Apache-2.0
import errno
import fcntl
import os
from contextlib import nullcontext

import pytest
from disks import full_after

from tersor.errors import BudgetError, InputError
from tersor.storage.journal import Journal, journaling

IDENTITY = {"the input": "a", "the options": "b"}
OTHER = "it is another file; rename it"
RESULTS = {"one": b"1", "two": b"", "drei {}": bytes(range(256))}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out.partial"


def write(path, results=RESULTS, identity=IDENTITY):
    journal = Journal(path, identity)
    for key, value in results.items():
        journal.put(key, value)
    journal.close(remove=False)


def read(path, identity=IDENTITY):
    journal = Journal(path, identity)
    found = {key: journal.get(key) for key in RESULTS}
    journal.close(remove=False)
    return {key: value for key, value in found.items() if value is not None}, journal.note


def test_results_come_back(path):
    assert read(path) == ({}, None)
    assert not path.exists()  # nothing was worth a file
    write(path)
    assert read(path) == (RESULTS, "continuing an interrupted run: 3 results are there already")
    write(path, {"one": b"newer"})
    assert read(path)[0] == RESULTS | {"one": b"newer"}


def test_a_torn_tail_is_dropped_and_more_can_be_added(path):
    write(path)
    whole = path.read_bytes()
    sizes = set()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        found, _ = read(path)
        assert found.items() <= RESULTS.items()
        sizes.add(len(found))
        write(path)
        assert read(path)[0] == RESULTS
    assert sizes == {0, 1, 2}


def test_no_flipped_bit_goes_unnoticed(path):
    write(path)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        assert read(path)[0].items() < RESULTS.items()


def test_results_of_other_work_are_left_behind(path):
    write(path)
    found, note = read(path, IDENTITY | {"the options": "c"})
    assert (
        found == {}
        and note == "starting anew: since the interrupted run there was a change in the options"
    )
    assert read(path)[0] == RESULTS  # it may have been a slip: only results take their place
    write(path, {"one": b"new"}, IDENTITY | {"the options": "c"})
    assert read(path) == (
        {},
        "starting anew: since the interrupted run there was a change in the options",
    )


@pytest.mark.parametrize(
    "head", [b"", b"[]", b"{", b"\xff", b'{"the input": 1e999}', b"[" * 100_000, b"1" * 5000]
)
def test_heads_that_are_no_identity(path, head):
    """Under a right digest."""
    journal = Journal(path, IDENTITY)
    journal._head = head
    journal.put("one", b"1")
    journal.close(remove=False)
    assert read(path)[0] == {} and read(path)[1].startswith("starting anew: ")
    write(path)
    assert read(path)[0] == RESULTS


def test_other_files_are_left_alone(path):
    """Whatever has the name that a journal would have."""
    path.write_text("no journal at all")
    write(path)
    assert read(path) == ({}, f"results are not kept for a later run in {path}: {OTHER}")
    assert path.read_text() == "no journal at all"
    path.unlink()
    os.mkfifo(path)
    write(path)
    assert read(path)[0] == {} and path.is_fifo()
    path.unlink()
    path.mkdir()
    write(path)
    assert read(path)[0] == {} and path.is_dir()


@pytest.mark.parametrize("there", [None, "precious", "a journal"])
def test_links_are_not_followed(path, tmp_path, there):
    target = tmp_path / "target"
    if there == "a journal":
        write(target)
    elif there:
        target.write_text(there)
    before = target.read_bytes() if there else None
    path.symlink_to(target)
    write(path, {"one": b"new"})
    assert read(path) == (
        {},
        f"results are not kept for a later run in {path}: it is a link; remove it",
    )
    assert path.is_symlink() and (target.read_bytes() if there else None) == before
    assert target.exists() == bool(there)


def test_one_process_at_a_time_has_the_file(path):
    first = Journal(path, IDENTITY)
    first.put("one", b"1")
    second = Journal(path, IDENTITY)
    assert second.note.endswith("another process works on the same output")
    second.put("one", b"2")
    assert second.get("one") is None
    second.close(remove=True)
    assert first.get("one") == b"1"
    first.close(remove=False)
    assert read(path)[0] == {"one": b"1"}


def test_a_file_that_is_removed_while_its_lock_is_taken_is_made_anew(path, monkeypatch):
    write(path)
    lock = fcntl.flock

    def late(*args):
        monkeypatch.setattr(fcntl, "flock", lock)
        path.unlink()
        return lock(*args)

    monkeypatch.setattr(fcntl, "flock", late)
    assert read(path) == ({}, None)
    monkeypatch.setattr(fcntl, "flock", late)
    write(path)
    assert read(path)[0] == RESULTS


def test_what_changes_while_it_is_open_is_not_taken_for_a_result(path):
    """Where there are no locks, another process may write to the same file."""
    journal = Journal(path, IDENTITY)
    for key, value in RESULTS.items():
        journal.put(key, value)
    whole = path.read_bytes()
    for content in (whole[:-1], whole[:100], b"", whole[:-1] + b"x", whole[:-1] + b"xx"):
        path.write_bytes(content)
        assert journal.get("drei {}") is None
    path.write_bytes(whole)
    assert journal.get("drei {}") == RESULTS["drei {}"]
    journal.close(remove=True)


GONE = "The file is removed to leave its space to the output"


@pytest.mark.parametrize("room", [0, 5, 30, 100, 200, 300, 420])
@pytest.mark.parametrize("earlier", [{}, {"one": b"1"}])
def test_on_a_full_disk_the_work_goes_on_without_the_file(path, room, earlier):
    """And its space is free for the output."""
    write(path, earlier)
    with full_after(room), pytest.warns(UserWarning, match=GONE) as caught:
        journal = Journal(path, IDENTITY)
        for key, value in RESULTS.items():
            journal.put(key, value)
        journal.put("more", bytes(1000))
        assert not path.exists() and not len(journal) and not journal.nbytes
        assert [journal.get(key) for key in RESULTS] == [None] * len(RESULTS)
        journal.close(remove=False)
    assert len(caught) == 1  # it is said once
    assert "File too large" in str(caught[0].message)
    assert read(path) == ({}, None)


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("which", range(4))
def test_writes_that_fail(path, monkeypatch, reason, which):
    """One write of these bytes fails; only where the disk is full the earlier ones are removed."""
    journal, writes, pwrite = Journal(path, IDENTITY), iter(range(10)), os.pwrite

    def failing(*args):
        if next(writes) < 1 + which:  # the magic number and the head are two
            return pwrite(*args)
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(os, "pwrite", failing)
    full = reason != errno.EIO
    with pytest.warns(UserWarning, match=GONE) if full else nullcontext():
        for key, value in RESULTS.items():
            journal.put(key, value)
    assert path.exists() == (which > 1 and not full)
    journal.close(remove=False)
    monkeypatch.undo()
    kept = dict(list(RESULTS.items())[: 0 if full else max(0, which - 1)])
    assert read(path)[0] == kept


def test_records_of_other_work_count_as_damaged(path, tmp_path):
    """Its process still writes to the file that this one has taken over."""
    other = tmp_path / "other"
    write(path, {"one": b"1"})
    write(other, {"two": b"2"}, IDENTITY | {"the options": "c"})
    record = other.read_bytes()[-len("two2") - 32 :]
    path.write_bytes(path.read_bytes() + record)
    assert read(path)[0] == {"one": b"1"}


def test_the_file_goes_when_the_work_is_done_or_impossible(path):
    with journaling(path, IDENTITY) as journal:
        journal.put("one", b"1")
        assert path.exists()
    assert not path.exists()
    with pytest.raises(BudgetError), journaling(path, IDENTITY) as journal:
        journal.put("one", b"1")
        raise BudgetError("impossible")
    assert not path.exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, InputError, OSError, RuntimeError])
def test_the_file_stays_if_the_work_may_go_on(path, error):
    """Such as after a mistake in a function of the user's."""
    with pytest.raises(error), journaling(path, IDENTITY) as journal:
        journal.put("one", b"1")
        raise error
    assert read(path)[0] == {"one": b"1"}


def test_work_goes_on_without_a_file(path, tmp_path):
    journal = Journal(tmp_path / ("x" * 300), IDENTITY)
    journal.put("one", b"1")
    assert journal.get("one") is None and not any(tmp_path.iterdir())
    path.mkdir()
    journal = Journal(path, IDENTITY)
    journal.put("one", b"1")
    assert journal.get("one") is None
    journal.close(remove=True)
