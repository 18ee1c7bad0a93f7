from __future__ import annotations

import torch

from znorm.lab.training.checksum import checksum


def batch(size: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (size, 3, 7, 9), generator=generator, dtype=torch.uint8)
    return images, torch.arange(size) % 2


def test_every_pixel_and_target_counts_where_it_is() -> None:
    images, labels = batch()
    found = {int(checksum(images, labels))}
    count = 1
    for place in (0, 1, 7, 8, 100, images.numel() - 1):
        for change in (1, 128):
            other = images.clone()
            other.view(-1)[place] ^= change
            found.add(int(checksum(other, labels)))
            count += 1
    order = torch.tensor([1, 0, 2, 3, 4])
    for one, other in (
        (images[order], labels[order]),
        (images[order], labels),
        (images, labels[order]),
        (images.flip(3), labels),
        (images[:4], labels[:4]),
    ):
        found.add(int(checksum(one, other)))
        count += 1
    assert len(found) == count


def test_it_is_a_sum_of_words_by_weights_and_the_same_in_any_memory_format() -> None:
    images, labels = batch()
    whole = int(checksum(images, labels))
    assert int(checksum(images.contiguous(memory_format=torch.channels_last), labels)) == whole
    assert int(checksum(images.clone(), labels.clone())) == whole
    masks = (images[:, 0] > 128).to(torch.uint8)
    assert int(checksum(images, masks)) != int(checksum(images, 1 - masks))


def test_changes_do_not_cancel() -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (12, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.zeros(12, dtype=torch.int64)
    before = int(checksum(images, labels))
    # Words that change places with each other, their numbers those of each other's images.
    words = images.view(12, -1).view(torch.int64).clone()
    words[2, 9], words[9, 2] = words[9, 2].clone(), words[2, 9].clone()
    assert int(checksum(words.view(torch.uint8).view_as(images), labels)) != before
    found = {before}
    for _ in range(2000):
        # Two changes of the highest bit of a word, which plain sums would lose.
        one, two = torch.randint(0, 4608, (2,), generator=generator).tolist()
        other = images.clone()
        other.view(-1)[8 * one + 7] ^= 128
        other.view(-1)[8 * two + 7] ^= 128
        found.add(int(checksum(other, labels)))
    assert len(found) >= 1999  # a place drawn twice changes nothing
    black = torch.zeros(5, 3, 8, 8, dtype=torch.uint8)
    assert int(checksum(black, labels[:5])) != int(checksum(black[:4], labels[:4]))
