# SPDX-License-Identifier: Apache-2.0
"""Measure how much memory is available to decode a file."""

from __future__ import annotations

import os
from pathlib import Path

_MACHINE = Path("/proc/meminfo")
_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUP = Path("/proc/self/cgroup")
_UNKNOWN = 1 << 62


def available() -> int:
    """Return how many bytes this process can still take from the machine and its control groups."""
    return min(_of_machine(), *map(_of_group, _groups()), _UNKNOWN)


def _of_machine() -> int:
    fields = _fields(_MACHINE)
    if "MemAvailable:" in fields:
        return 1024 * fields["MemAvailable:"]
    try:  # not Linux: the whole memory of the machine
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return _UNKNOWN


def _groups() -> list[Path]:
    """Return the folders of this process' control groups (version 2; memory of version 1)."""
    folders: list[Path] = []
    for line in _read(_OWN_GROUP).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            root = _GROUPS / "memory" if controllers else _GROUPS
            inner = root / path.lstrip("/")
            folders += [p for p in (inner, *inner.parents) if p.is_relative_to(root)]
    return folders


_LIMITS = {
    "memory.max": ("memory.current", "inactive_file"),
    "memory.limit_in_bytes": ("memory.usage_in_bytes", "total_inactive_file"),
}
"""Files that hold a limit, with the file of the bytes in use and the field of bytes that the system
can reclaim."""


def _of_group(folder: Path) -> int:
    for limit, (used, spare) in _LIMITS.items():
        most, taken = _read(folder / limit).strip(), _read(folder / used).strip()
        if most.isdigit() and taken.isdigit():
            given_back = _fields(folder / "memory.stat").get(spare, 0)
            return max(int(most) - int(taken) + given_back, 0)
    return _UNKNOWN


def _fields(path: Path) -> dict[str, int]:
    """Return the numbers of a file whose lines hold a name and a number, by name."""
    lines = (line.split() for line in _read(path).splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
