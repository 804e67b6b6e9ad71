"""In which order training cases are taken: a seeded shuffle, epoch after epoch."""

from collections.abc import Sequence

import numpy as np


class CaseOrder:
    """An endless order of cases that depends on the seed alone; an epoch takes each case once."""

    def __init__(self, case_ids: Sequence[str], seed: int) -> None:
        if not case_ids:
            raise ValueError("there are no cases to take")
        self._case_ids = list(case_ids)
        self._seed = seed

    def cases(self, first: int, n: int) -> list[str]:
        """`n` of them, from place `first` (0 …) on."""
        size = len(self._case_ids)
        epochs = range(first // size, -(-(first + n) // size))
        order = np.concatenate(
            [np.random.default_rng((self._seed, epoch)).permutation(size) for epoch in epochs]
        )
        start = first - epochs.start * size
        return [self._case_ids[index] for index in order[start : start + n]]
