import pytest

from tersor.errors import InputError
from tersor.storage.journal import Journal, journaling

IDENTITY = {"the input": "a", "the options": "b"}
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
    assert not path.exists()
    path.write_text("no journal at all")
    assert read(path)[1] == "starting anew: what an interrupted run has left is damaged"


def test_records_of_other_work_count_as_damaged(path, tmp_path):
    """Its process still writes to the file that this one has taken over."""
    other = tmp_path / "other"
    write(path, {"one": b"1"})
    write(other, {"two": b"2"}, IDENTITY | {"the options": "c"})
    record = other.read_bytes()[-len("two2") - 12 :]
    path.write_bytes(path.read_bytes() + record)
    assert read(path)[0] == {"one": b"1"}


def test_the_file_goes_when_the_work_is_done_or_impossible(path):
    with journaling(path, IDENTITY) as journal:
        journal.put("one", b"1")
        assert path.exists()
    assert not path.exists()
    with pytest.raises(InputError), journaling(path, IDENTITY) as journal:
        journal.put("one", b"1")
        raise InputError("impossible")
    assert not path.exists()
    with pytest.raises(KeyboardInterrupt), journaling(path, IDENTITY) as journal:
        journal.put("one", b"1")
        raise KeyboardInterrupt
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
