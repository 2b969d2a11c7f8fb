# SPDX-License-Identifier: Apache-2.0
import math
import tracemalloc

import pytest
import torch
from hypothesis import given
from samples import archives, bits, from_file_bytes, plain, same, small_archive, to_file_bytes

from tersor.io import dense_tensors
from tersor.storage import container, unfactored
from tersor.storage.archive import Alias, Archive, Plain, Reason
from tersor.storage.opened import OpenFile, open_file


def decoded(data: bytes) -> dict[str, torch.Tensor]:
    return dense_tensors(OpenFile(data))


@pytest.fixture(
    params=[8, 40, unfactored.GROUP_BYTES], ids=["one a group", "small groups", "usual"]
)
def group_bytes(request, monkeypatch):
    monkeypatch.setattr(unfactored, "GROUP_BYTES", request.param)


def test_archives_come_back(group_bytes):
    @given(archives())
    def check(archive):
        data = to_file_bytes(archive)
        assert len(data) == container.size(archive)
        back = from_file_bytes(data)
        assert back.source_bytes == archive.source_bytes
        assert list(back.entries) == list(archive.entries)
        assert to_file_bytes(back) == data
        assert same(dense_tensors(back), dense_tensors(archive))
        for name, entry in archive.entries.items():
            if isinstance(entry.content, Plain):
                assert bits(back.entries[name].content.values) == bits(entry.content.values)
                assert back.entries[name].content.reason == entry.content.reason
            if isinstance(entry.content, Alias):
                assert back.entries[name].content == entry.content

    check()


def test_files_come_back(tmp_path):
    path = tmp_path / "model.tersor"
    archive = small_archive()
    assert container.write(path, archive) == path.stat().st_size == container.size(archive)
    assert same(dense_tensors(open_file(path)), dense_tensors(archive))


def test_overhead_is_small():
    """What is not coded latents and codebooks: at most 2 % of a 54 kB file with 60 tensors."""
    entries = dict(small_archive().entries)
    names = [f"layer{i}.{j}.conv{k}.weight" for i in range(3) for j in range(3) for k in range(2)]
    entries |= {name: entries["layer.weight"] for name in names}
    entries |= {
        f"layer{i}.{j}.bn{k}.{part}": plain(torch.randn(32), Reason.VECTOR, rounded=True)
        for i in range(3)
        for j in range(3)
        for k in range(2)
        for part in ("weight", "bias")
    }
    archive = Archive(entries, 1_000_000)
    sections = list(container.unfactored_sections(archive))
    coded = sum(entries[n].content.coded_bytes for n in [*names, "layer.weight"])
    assert container.size(archive) - sum(map(len, sections)) - coded < 0.02 * 54_000


def test_large_tensors_pass_in_pieces(tmp_path):
    """Beside the tensor of 40 MB itself, which is torch's, a few pieces are in memory."""
    path = tmp_path / "large.tersor"
    archive = Archive({"w": plain(torch.randn(10_000_000), Reason.LOSSLESS)}, 1)
    seen = []
    for work in (
        lambda: container.write(path, archive, lambda *a: seen.append(a)),
        lambda: [t.numel() for t in open_file(path).values()],
    ):
        tracemalloc.start()
        work()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 16_000_000 < path.stat().st_size
    shares = [done for _, done in seen]
    assert len(shares) == 39 and shares == sorted(shares) and 0.95 < shares[-1] <= 1


def test_size_of_an_empty_archive():
    assert len(OpenFile(to_file_bytes(Archive({}, 0)))) == 0


def test_signal_to_noise_is_no_part_of_the_weights():
    archive = small_archive()
    assert math.isclose(archive.entries["layer.weight"].content.snr, 12.5)
    assert archive.original("tied.weight") == "layer.weight"


def test_the_header_ends_where_the_sections_begin(tmp_path):
    archive = small_archive()
    container.write(tmp_path / "model.tersor", archive)
    head = next(container.to_bytes(archive))
    assert open_file(tmp_path / "model.tersor").layout.header_bytes == len(head)
