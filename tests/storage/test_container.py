import math
import tracemalloc

import pytest
import torch
from hypothesis import given
from samples import archives, bits, plain, same, small_archive, to_file_bytes

from tersor.errors import FileFormatError, InputError
from tersor.files import dense_tensors
from tersor.storage import container, kept
from tersor.storage.archive import Alias, Archive, Kept, Plain


def decoded(data: bytes) -> dict[str, torch.Tensor]:
    return dense_tensors(container.from_bytes(data))


@pytest.fixture(params=[8, 40, kept.GROUP_BYTES], ids=["one a group", "small groups", "usual"])
def group_bytes(request, monkeypatch):
    monkeypatch.setattr(kept, "GROUP_BYTES", request.param)


def test_archives_come_back(group_bytes):
    @given(archives())
    def check(archive):
        data = to_file_bytes(archive)
        assert len(data) == container.size(archive)
        back = container.from_bytes(data)
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
    assert same(dense_tensors(container.read(path)), dense_tensors(archive))


def test_overhead_is_small():
    """What is not coded latents and codebooks: at most 2 % of a 54 kB file with 60 tensors."""
    entries = dict(small_archive().entries)
    names = [f"layer{i}.{j}.conv{k}.weight" for i in range(3) for j in range(3) for k in range(2)]
    entries |= {name: entries["layer.weight"] for name in names}
    entries |= {
        f"layer{i}.{j}.bn{k}.{part}": plain(torch.randn(32), Kept.VECTOR, rounded=True)
        for i in range(3)
        for j in range(3)
        for k in range(2)
        for part in ("weight", "bias")
    }
    archive = Archive(entries, 1_000_000)
    sections = list(container.kept_sections(archive))
    payloads = [e.content.payload for n, e in entries.items() if n in names]
    payloads.append(entries["layer.weight"].content.payload)
    assert container.size(archive) - sum(map(len, payloads + sections)) < 0.02 * 54_000


def test_every_truncation_is_refused():
    data = to_file_bytes(small_archive())
    for length in range(len(data)):
        with pytest.raises(FileFormatError):
            container.from_bytes(data[:length])


def test_every_flipped_bit_is_refused():
    data = to_file_bytes(small_archive())
    for position in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        with pytest.raises(FileFormatError):
            container.from_bytes(bytes(flipped))


@pytest.mark.parametrize("extra", [b"\0", b"x" * 100])
def test_longer_files_are_refused(extra):
    with pytest.raises(FileFormatError, match="its header says"):
        container.from_bytes(to_file_bytes(small_archive()) + extra)


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "not a tersor file"),
        (b"plain text, not a model", "not a tersor file"),
        (container.MAGIC, "ends within its first 21 bytes"),
        (container.MAGIC + b"\7" + bytes(12), "format version 7; this release reads version 0"),
        (container.MAGIC + b"\0" + b"\0\0\0\0\xff\xff\xff\xff" + bytes(4), "header of 4294967295"),
        (container.MAGIC + b"\0" + bytes(12), "the header is damaged"),
    ],
)
def test_other_files_are_refused(data, message):
    with pytest.raises(FileFormatError, match=message):
        container.from_bytes(data)


def test_more_than_the_limit_is_refused():
    archive = Archive({"w": plain(torch.zeros(1000), Kept.VECTOR)}, 1)
    data = to_file_bytes(archive)
    with pytest.raises(FileFormatError, match="decoding takes 4000 bytes; at most 3999"):
        container.from_bytes(data, max_bytes=3999)
    assert container.from_bytes(data, max_bytes=4000)


def test_factors_count_for_the_limit():
    """Six columns of rank 3 for tiles of 4 take more than the weight itself."""
    data = to_file_bytes(Archive({"w": small_archive().entries["layer.weight"]}, 1))
    needed = 4 * 60 + 2 * 3 * (4 + 18)
    with pytest.raises(FileFormatError, match=f"takes {needed} bytes"):
        container.from_bytes(data, max_bytes=needed - 1)


@pytest.mark.parametrize(
    "elements, message",
    [(2**31, "header ends too early: 8192 fields"), (2**18, "bytes cannot hold 1048576")],
)
def test_claims_cost_no_memory(elements, message):
    """A kept tensor of 8 GB, or of 1 MiB, in a file of 100 bytes."""
    honest = Plain(torch.zeros(3), Kept.VECTOR)
    huge = container.Entry((elements,), torch.float32, honest)
    data = to_file_bytes(Archive({"w": huge}, 1))
    tracemalloc.start()
    with pytest.raises(FileFormatError, match=message):
        container.from_bytes(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


def test_large_tensors_pass_in_pieces(tmp_path):
    """Beside the tensor of 40 MB itself, which is torch's, a few pieces are in memory."""
    path = tmp_path / "large.tersor"
    archive = Archive({"w": plain(torch.randn(10_000_000), Kept.LOSSLESS)}, 1)
    seen = []
    for work in (
        lambda: container.write(path, archive, lambda *a: seen.append(a)),
        lambda: container.read(path),
    ):
        tracemalloc.start()
        work()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 16_000_000 < path.stat().st_size
    shares = [done for _, done in seen]
    assert len(shares) == 39 and shares == sorted(shares) and 0.95 < shares[-1] <= 1


def test_missing_files_and_directories(tmp_path):
    with pytest.raises(InputError, match="is not there"):
        container.read(tmp_path / "none.tersor")
    with pytest.raises(InputError, match="is a directory"):
        container.read(tmp_path)


def test_errors_name_the_file(tmp_path):
    path = tmp_path / "text.tersor"
    path.write_text("not a model")
    with pytest.raises(FileFormatError, match=r"text\.tersor: not a tersor file"):
        container.read(path)


def test_size_of_an_empty_archive():
    assert container.from_bytes(to_file_bytes(Archive({}, 0))).entries == {}


def test_signal_to_noise_is_no_part_of_the_weights():
    archive = small_archive()
    assert math.isclose(archive.entries["layer.weight"].content.snr, 12.5)
    assert archive.original("tied.weight") == "layer.weight"


def test_the_header_ends_where_the_sections_begin(tmp_path):
    archive = small_archive()
    container.write(tmp_path / "model.tersor", archive)
    head = next(container.to_bytes(archive))
    assert container.header_bytes(tmp_path / "model.tersor") == len(head)
