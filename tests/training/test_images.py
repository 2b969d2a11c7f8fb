# SPDX-License-Identifier: Apache-2.0
"""Images from archives, CIFAR-10's files and folders."""

import numpy as np
import pytest
import torch

from tersor.errors import InputError, MissingExtraError
from tersor.training.images import Look, flipped, loader_of, open_images, shifted

Image = pytest.importorskip("PIL.Image", reason="images need the extra finetune")

PLAIN = Look(8, (0.5,), (0.25,), augmented=False)


def pixels(count=6, size=8):
    draw = np.random.default_rng(0)
    return draw.integers(0, 256, (count, 3, size, size), np.uint8)


def batches(path, look=PLAIN, batch_size=4):
    return list(loader_of(open_images(path, look), batch_size))


@pytest.mark.parametrize("channels_last", [True, False])
def test_archives(tmp_path, channels_last):
    x, y = pixels(), np.arange(6)
    np.savez(tmp_path / "d.npz", x=x.transpose(0, 2, 3, 1) if channels_last else x, y=y)
    first, last = batches(tmp_path / "d.npz")
    assert first[0].shape == (4, 3, 8, 8) and last[1].tolist() == [4, 5]
    expected = (torch.from_numpy(x[:4]).float() / 255 - 0.5) / 0.25
    torch.testing.assert_close(first[0], expected)


def test_binary_files_of_cifar(tmp_path):
    x, y = pixels(size=32), np.arange(6, dtype=np.uint8)
    rows = np.concatenate([y[:, None], x.reshape(6, -1)], axis=1)
    for number in (1, 2):
        rows[3 * number - 3 : 3 * number].tofile(tmp_path / f"data_batch_{number}.bin")
    (tmp_path / "test_batch.bin").write_bytes(rows[:1].tobytes())
    (images, labels), _ = batches(tmp_path)
    assert labels.tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(images[3], (torch.from_numpy(x[3]).float() / 255 - 0.5) / 0.25)
    assert [labels.tolist() for _, labels in batches(tmp_path / "test_batch.bin")] == [[0]]


def test_folders_of_images(tmp_path):
    for name, value in (("cat", 10), ("dog", 200)):
        (tmp_path / name).mkdir()
        for n in range(2):
            array = np.full((12, 20, 3), value, np.uint8)
            Image.fromarray(array).save(tmp_path / name / f"{n}.png")
    ((images, labels),) = batches(tmp_path)
    assert labels.tolist() == [0, 0, 1, 1] and images.shape == (4, 3, 8, 8)
    torch.testing.assert_close(images[3], torch.full((3, 8, 8), (200 / 255 - 0.5) / 0.25))


def test_augmented_batches_differ_and_are_of_one_size(tmp_path):
    np.savez(tmp_path / "d.npz", x=pixels(9), y=np.arange(9))
    look = Look(8, (0.0,), (1.0,), augmented=True)
    torch.manual_seed(0)
    first, second = (batches(tmp_path / "d.npz", look) for _ in range(2))
    assert [len(x) for x, _ in first] == [4, 4]
    assert not torch.equal(first[0][1], second[0][1])


def test_shifts_and_flips_keep_what_is_seen():
    image = torch.zeros(200, 1, 16, 16, dtype=torch.uint8)
    image[:, :, 6:9, 8] = 7
    moved = shifted(image)
    assert moved.shape == image.shape and (moved.sum((1, 2, 3)) == 21).all()
    assert len({tuple(m.nonzero()[0].tolist()) for m in moved}) == 25  # 2 pixels each way
    mirrored = flipped(image)
    kept = (mirrored == image).flatten(1).all(1)
    assert torch.equal(mirrored[~kept], image.flip(3)[~kept]) and 60 < int(kept.sum()) < 140


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda p: p / "none.npz", "is no data: an .npz archive"),
        (lambda p: p, "holds no images; a subfolder for each class"),
        (lambda p: save(p, x=np.zeros((2, 3, 4, 4), np.uint8)), "it needs the arrays x, uint8"),
        (lambda p: save(p, x=np.zeros((2, 3, 4, 4)), y=np.zeros(2)), r"float64 \(2, 3, 4, 4\)"),
        (lambda p: save(p, x=np.zeros((2, 3, 4, 4), np.uint8), y=np.zeros(3)), "as many labels"),
        (lambda p: write(p / "d.npz", b"text"), "is damaged, or no archive of images"),
        (lambda p: write(p / "d.bin", b"text"), "has 4 bytes, no multiple of 3073"),
    ],
)
def test_what_holds_no_images(tmp_path, make, message):
    with pytest.raises(InputError, match=message):
        open_images(make(tmp_path), PLAIN)


def save(folder, **arrays):
    np.savez(folder / "d.npz", **arrays)
    return folder / "d.npz"


def write(path, content):
    path.write_bytes(content)
    return path


def test_damaged_images_and_small_sets(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    write(tmp_path / "a" / "x.png", b"no image")
    with pytest.raises(InputError, match=r"x\.png cannot be read as an image"):
        batches(tmp_path)
    with pytest.raises(InputError, match="1 images, fewer than a batch of 4"):
        batches(tmp_path, Look(8, (0.0,), (1.0,), augmented=True))
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tersor\[finetune\]'"):
        batches(tmp_path)
