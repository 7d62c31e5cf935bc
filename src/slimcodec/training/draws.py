"""Random numbers that do not depend on how a batch is divided among processes, or when a run was interrupted."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Share:
    """Which of ``count`` equal parts of a step's batch is meant: a process works on one or, accumulating, on several."""

    index: int = 0
    count: int = 1

    def numbers(self, batch: int) -> range:
        """The pictures' numbers, 0..batch-1 over all shares, in this share of a batch of ``batch``."""
        size = batch // self.count
        return range(self.index * size, (self.index + 1) * size)


WHOLE = Share()


class Draws:
    """The random numbers of a step for the pictures of a share.

    Every picture has a generator of its own, seeded by (seed, step, number of the picture), on the CPU; so the numbers are the
    same for any number of processes or micro-batches, and on any device. What is common to the batch has one more generator.
    """

    def __init__(
        self, seed: int, step: int, numbers: Sequence[int], batch: int, device: torch.device | None = None
    ) -> None:
        self.numbers, self.batch = list(numbers), batch
        self.device = device or torch.device("cpu")
        self._own = [_generator(seed, step, number + 1) for number in numbers]
        self._common = _generator(seed, step, 0)

    def of(self, chosen: Tensor) -> Draws:
        """The draws of the pictures that are ``chosen`` (booleans [pictures]); what is common stays common."""
        part = copy.copy(self)
        picked = [place for place, wanted in enumerate(chosen.tolist()) if wanted]
        part.numbers = [self.numbers[place] for place in picked]
        part._own = [self._own[place] for place in picked]
        return part

    def uniform(self, *shape: int) -> Tensor:
        """Numbers in [0, 1), [pictures, *shape]."""
        return torch.stack([torch.rand(shape, generator=own) for own in self._own]).to(self.device)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, [pictures, *shape]."""
        return torch.stack([torch.randn(shape, generator=own) for own in self._own]).to(self.device)

    def integers(self, low: int, high: int) -> Tensor:
        """Whole numbers in low..high-1, [pictures]."""
        return torch.cat([torch.randint(low, high, (1,), generator=own) for own in self._own]).to(self.device)

    def common(self, low: int, high: int) -> int:
        """One whole number in low..high-1, the same in all shares."""
        return int(torch.randint(low, high, (), generator=self._common))

    def every(self, share: float) -> Tensor:
        """Which pictures belong to a fixed, evenly spread ``share`` of the whole batch: booleans [pictures]."""
        wanted = max(1, round(share * self.batch))
        chosen = [((n + 1) * wanted) // self.batch > (n * wanted) // self.batch for n in self.numbers]
        return torch.tensor(chosen, device=self.device)


def part_mean(values: Tensor, chosen: Tensor, share: float, batch: int) -> Tensor:
    """Mean of ``values`` [chosen pictures] over ``Draws.every(share)`` of a batch of ``batch``, as a share's part of it.

    Shares may hold unequal numbers of chosen pictures: dividing by what an average share holds makes the mean over shares the
    mean over the batch.
    """
    expected = len(chosen) * max(1, round(share * batch)) / batch
    return values.sum() / expected


def _generator(seed: int, step: int, number: int) -> torch.Generator:
    state = np.random.SeedSequence([seed, step, number]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
