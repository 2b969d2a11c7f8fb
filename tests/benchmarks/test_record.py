# SPDX-License-Identifier: Apache-2.0
"""Results know the code that they measure."""

import pytest

from benchmarks.lib import parts, record


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """A project of one source file, whose hash is computed anew each time."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "solve.py").write_text("a = 1\n")
    monkeypatch.setattr(record, "ROOT", tmp_path)
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(record, "fingerprint", record.fingerprint.__wrapped__)
    return tmp_path


def age():
    return record.age(record.content("x"))


def test_rows_are_of_this_code_until_it_changes(project):
    record.save("x", [{"case": 1}], measures=("src",))
    assert age() == "of this code"
    (project / "src" / "module.so").write_bytes(b"compiled")
    assert age() == "of this code"
    (project / "src" / "solve.py").write_text("a = 2\n")
    assert age() == "older than the code"


def test_moved_code_makes_results_old(project):
    record.save("x", [{"case": 1}], measures=("src/solve.py",))
    (project / "src" / "solve.py").rename(project / "src" / "solver.py")
    assert age() == "older than the code"


def test_merged_rows_keep_the_hash_of_their_own_code(project):
    record.save("x", [{"case": 1}, {"case": 2}], measures=("src",))
    (project / "src" / "solve.py").write_text("a = 2\n")
    record.merge("x", [{"case": 2}], lambda row: row["case"], measures=("src",))
    assert age() == "1 of 2 older than the code, 1 of 2 of this code"


def test_rows_from_before_there_were_hashes_stay_unknown(project):
    (project / "results").mkdir()
    (project / "results" / "x.json").write_text('{"rows": [{"case": 1}]}')
    assert age() == "not known"
    record.save("x", [*record.load("x"), {"case": 2}], measures=("src",))
    assert age() == "1 of 2 not known, 1 of 2 of this code"


def test_parts_without_sources_are_an_error(project):
    with pytest.raises(FileNotFoundError, match="no source files are at csrc"):
        record.save("x", [{"case": 1}], measures=("csrc",))


def test_parts_that_benchmarks_name_are_there(monkeypatch):
    monkeypatch.undo()
    named = {name: value for name, value in vars(parts).items() if name.isupper()}
    assert len({record.fingerprint(part) for part in named.values()}) == len(named) > 5
