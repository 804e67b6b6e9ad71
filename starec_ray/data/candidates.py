"""Step 6 of the protocol: which items stand beside a case's target."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True, slots=True)
class Untouched:
    """What limits the negatives of a user: the names that none may have, and the codes of the
    published candidates that can be taken, in their order."""

    touched: frozenset[int]
    given: list[int]


class NegativeDraw:
    """Draws negatives from the items of the catalog that are in use.

    `catalog` is the raw catalog, `in_use` the sorted codes (its rows) that may be drawn, `given`
    maps user ids to published candidates, taken before the drawn ones, and `unplaced` to items
    touched besides those of the log. `counts` tells what became of the published candidates of
    the users asked for, and how many negatives were published ones, how many drawn.
    """

    def __init__(
        self,
        catalog: pa.Table,
        in_use: np.ndarray,
        given: Mapping[str, Sequence[str]],
        unplaced: Mapping[str, Sequence[str]],
    ) -> None:
        self._in_use = in_use
        # A list: single look-ups in it are much faster than in an array.
        self._names: list[int] = name_codes(catalog).tolist()
        self._given = _codes(catalog, in_use, given)
        self._unplaced = _codes(catalog, np.arange(catalog.num_rows), unplaced)
        without_item = sum(map(len, given.values())) - sum(map(len, self._given.values()))
        self.counts = Counter({"given_candidates_without_item": without_item})

    def untouched(self, user_id: str, touched: np.ndarray) -> Untouched:
        """What may be drawn for a user who touched the items of these codes."""
        codes = [*touched.tolist(), *self._unplaced.get(user_id, ())]
        of_touched = frozenset(self._names[code] for code in codes)
        given = self._given.get(user_id, [])
        new = [code for code in given if self._names[code] not in of_touched]
        usable: list[int] = []
        self._add(usable, set(), new, len(new))
        self.counts["given_candidates_touched"] += len(given) - len(new)
        self.counts["given_candidates_repeated"] += len(new) - len(usable)
        self.counts["given_candidates_not_needed"] += len(usable)
        return Untouched(of_touched, usable)

    def draw(
        self, rng: np.random.Generator, user: Untouched, count: int, block: int
    ) -> np.ndarray | None:
        """`count` item codes, int64, none with the name of a touched item or of one another.

        Published candidates come first: block 0 is the first `count` of the usable ones, block 1
        the next, so that the rounds of a user don't share them. The rest is uniform. None if the
        catalog has too few.
        """
        if count > len(self._in_use):  # before so many are drawn
            return None
        chosen = user.given[block * count :][:count]
        self.counts["given_candidates_not_needed"] -= len(chosen)
        self.counts["negatives_given"] += len(chosen)
        self.counts["negatives_drawn"] += count - len(chosen)
        taken = {*user.touched, *(self._names[code] for code in chosen)}
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


def _codes(
    catalog: pa.Table, rows: np.ndarray, lists: Mapping[str, Sequence[str]]
) -> dict[str, list[int]]:
    """Lists of item ids as rows of the catalog, those that aren't among `rows` left out."""
    if not lists:
        return {}
    item_ids = catalog.column("item_id").take(pa.array(rows)).to_pylist()
    codes = dict(zip(item_ids, rows.tolist(), strict=True))
    return {key: [codes[each] for each in ids if each in codes] for key, ids in lists.items()}


def name_codes(catalog: pa.Table) -> np.ndarray:
    """One number for each different (title, year), letter case aside: int64 [items]."""
    years = pc.fill_null(pc.cast(catalog.column("year"), pa.string()), "")
    lowered = pc.utf8_lower(catalog.column("title"))
    names = pc.binary_join_element_wise(lowered, years, "\t").combine_chunks()
    return pc.index_in(names, value_set=names.unique()).to_numpy().astype(np.int64)
