"""Step 6 of the protocol: which items stand beside a case's target."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


class NegativeDraw:
    """Draws negatives from the items of the catalog that are in use.

    `catalog` is the raw catalog, `in_use` the sorted codes (its rows) that may be drawn, `given`
    maps user ids to published candidates, taken before the drawn ones; `unknown` counts those
    that are no such items, and so can't be taken.
    """

    def __init__(
        self, catalog: pa.Table, in_use: np.ndarray, given: Mapping[str, Sequence[str]]
    ) -> None:
        self._in_use = in_use
        # A list: single look-ups in it are much faster than in an array.
        self._names: list[int] = name_codes(catalog).tolist()
        item_ids = catalog.column("item_id").take(pa.array(in_use)).to_pylist()
        codes = dict(zip(item_ids, in_use.tolist(), strict=True))
        self._given = {
            user_id: [codes[item_id] for item_id in ids if item_id in codes]
            for user_id, ids in given.items()
        }
        self.unknown = sum(map(len, given.values())) - sum(map(len, self._given.values()))

    def draw(
        self, rng: np.random.Generator, user_id: str, touched: np.ndarray, count: int, block: int
    ) -> np.ndarray | None:
        """`count` item codes, int64, none with the name of a touched item or of one another.

        Published candidates come first: block 0 is the first `count` of the usable ones, block 1
        the next, so that the rounds of a user don't share them. The rest is uniform. None if the
        catalog has too few.
        """
        of_touched = {self._names[code] for code in touched.tolist()}
        usable: list[int] = []
        self._add(usable, set(of_touched), self._given.get(user_id, ()), len(self._names))
        chosen = usable[block * count :][:count]
        taken = of_touched | {self._names[code] for code in chosen}
        # A few draws nearly always do; the whole catalog is shuffled only when they don't.
        self._add(chosen, taken, rng.choice(self._in_use, size=4 * count).tolist(), count)
        if len(chosen) < count:
            self._add(chosen, taken, rng.permutation(self._in_use).tolist(), count)
        return np.array(chosen, dtype=np.int64) if len(chosen) == count else None

    def _add(self, chosen: list[int], taken: set[int], pool: Sequence[int], count: int) -> None:
        """Append codes with names not yet taken until `chosen` holds `count`."""
        for code in pool:
            if len(chosen) >= count:
                return
            if self._names[code] not in taken:
                taken.add(self._names[code])
                chosen.append(code)


def name_codes(catalog: pa.Table) -> np.ndarray:
    """One number for each different (title, year), letter case aside: int64 [items]."""
    years = pc.fill_null(pc.cast(catalog.column("year"), pa.string()), "")
    lowered = pc.utf8_lower(catalog.column("title"))
    names = pc.binary_join_element_wise(lowered, years, "\t").combine_chunks()
    return pc.index_in(names, value_set=names.unique()).to_numpy().astype(np.int64)
