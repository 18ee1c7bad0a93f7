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
