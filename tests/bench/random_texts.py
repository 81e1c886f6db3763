"""Batches of random tokens: what a model computes with them takes as long as with words."""

from collections.abc import Iterator

import torch

from blindmerge_client.batches import Batch

__all__ = ["random_batches"]


def random_batches(tokens: int, rows: int, vocabulary: int) -> list[Batch]:
    """Batches of `rows` texts of 16 to 128 random tokens, sorted by length as an owner's are."""
    generator = torch.Generator().manual_seed(0)
    lengths: list[int] = []
    while sum(lengths) < tokens:
        lengths.append(int(torch.randint(16, 129, (), generator=generator)))
    lengths.sort()
    return list(_batches(lengths, rows, vocabulary, generator))


def _batches(
    lengths: list[int], rows: int, vocabulary: int, generator: torch.Generator
) -> Iterator[Batch]:
    for start in range(0, len(lengths), rows):
        some = lengths[start : start + rows]
        mask = (torch.arange(some[-1]) < torch.tensor(some)[:, None]).long()
        ids = torch.randint(1000, vocabulary, mask.shape, generator=generator)
        inputs = {"input_ids": torch.where(mask.bool(), ids, 1), "attention_mask": mask}
        yield Batch(tuple(range(start, start + len(some))), inputs)
