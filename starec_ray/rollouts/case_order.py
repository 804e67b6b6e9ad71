"""In which order training cases are taken: a seeded shuffle, epoch after epoch."""

from collections.abc import Sequence

import numpy as np


class CaseOrder:
    """An endless order of cases that depends on the seed and on how many were taken alone.

    Setting `taken` moves to any place of the order, so that a resumed run goes on where it was.
    """

    def __init__(self, case_ids: Sequence[str], seed: int) -> None:
        if not case_ids:
            raise ValueError("there are no cases to take")
        self._case_ids = list(case_ids)
        self._seed = seed
        self.taken = 0

    def take(self, n: int) -> list[str]:
        """The next `n` cases; an epoch takes each case once."""
        places = range(self.taken, self.taken + n)
        self.taken += n
        return [self._at(place) for place in places]

    def _at(self, place: int) -> str:
        epoch, index = divmod(place, len(self._case_ids))
        order = np.random.default_rng((self._seed, epoch)).permutation(len(self._case_ids))
        return self._case_ids[order[index]]
