# SPDX-License-Identifier: Apache-2.0
"""How much memory is left, by files such as Linux has."""

import pytest

from tersor.storage import memory

GROUP = {"memory.max": "1000", "memory.current": "700", "memory.stat": "anon 5\ninactive_file 50"}
OLD = {
    "memory.limit_in_bytes": "1000",
    "memory.usage_in_bytes": "700",
    "memory.stat": "cache 5\ntotal_inactive_file 50",
}
FREE = {"memory.max": "max", "memory.current": "700"}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Writes files; the machine itself has 4096 bytes left."""
    for name, path in (("_MACHINE", "meminfo"), ("_GROUPS", "groups"), ("_OWN_GROUP", "own")):
        monkeypatch.setattr(memory, name, tmp_path / path)
    (tmp_path / "meminfo").write_text("MemTotal:  99 kB\nMemAvailable:  4 kB\nHugePages: none\n")

    def write(own, groups):
        (tmp_path / "own").write_text(own)
        for folder, files in groups.items():
            (tmp_path / "groups" / folder).mkdir(parents=True, exist_ok=True)
            for name, text in files.items():
                (tmp_path / "groups" / folder / name).write_text(text + "\n")

    return write


@pytest.mark.parametrize(
    "own, groups, left",
    [
        ("", {}, 4096),
        ("0::/\n", {"": {}}, 4096),
        ("0::/\n", {"": GROUP}, 350),
        ("0::/a/b\n", {"a/b": FREE, "a": GROUP}, 350),
        ("0::/a/b\n", {"a/b": GROUP, "a": FREE}, 350),
        ("0::/a\n", {"a": GROUP | {"memory.current": "2000"}}, 0),
        ("4:cpu,memory:/a\n3:cpu:/b\n0::/\n", {"memory/a": OLD}, 350),
        ("4:memory:/not/seen/here\n", {"memory": OLD}, 350),
        ("3:cpu:/b\n", {"b": GROUP, "memory": OLD}, 4096),
    ],
)
def test_what_is_left(machine, own, groups, left):
    machine(own, groups)
    assert memory.available() == left


def test_other_systems(machine, tmp_path):
    """All that is built in, where nothing tells what is left."""
    (tmp_path / "meminfo").unlink()
    assert memory.available() > 1 << 26


def test_this_machine():
    assert 1 << 24 < memory.available() < 1 << 50
