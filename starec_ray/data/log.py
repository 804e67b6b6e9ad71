"""The interaction log: raw interactions as integer codes in time order, and its k-core."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from starec_ray import schemas
from starec_ray.data.protocol import Protocol
from starec_ray.data.raw import RawData
from starec_ray.errors import DataError


@dataclass(slots=True)
class Log:
    """N interactions sorted by user, then time; codes are rows into the user and item tables."""

    user: np.ndarray  # int64 [N]
    item: np.ndarray  # int64 [N]
    rating: np.ndarray  # float32 [N], NaN for none
    timestamp: pa.Array  # float64 seconds as published [N], null for none

    def take(self, rows: np.ndarray) -> "Log":
        """The interactions of these rows, in their order."""
        timestamp = self.timestamp.take(pa.array(rows))
        return Log(self.user[rows], self.item[rows], self.rating[rows], timestamp)

    def starts(self, users: int) -> np.ndarray:
        """Where each user's interactions start, and the last one's end: int64 [users + 1]."""
        return np.searchsorted(self.user, np.arange(users + 1))

    def table(self, user_ids: pa.Array, item_ids: pa.Array) -> pa.Table:
        """The log as a table of schema INTERACTIONS."""
        position = np.arange(len(self.user)) - self.starts(len(user_ids))[self.user]
        return pa.table(
            [
                user_ids.take(pa.array(self.user)),
                item_ids.take(pa.array(self.item)),
                pa.array(self.rating, pa.float32(), from_pandas=True),  # NaN → null
                pc.floor(self.timestamp).cast(pa.int64()),
                pa.array(position, pa.int32()),
            ],
            schema=schemas.INTERACTIONS,
        ).combine_chunks()


def all_users(raw: RawData) -> pa.Table:
    """The source's users, then those found in the interactions alone, with an empty profile."""
    found = raw.interactions.column("user_id").unique()
    known = pc.is_in(found, value_set=raw.users.column("user_id").combine_chunks())
    others = found.filter(pc.invert(known))
    profiles = pa.array([[]] * len(others), schemas.USERS.field("profile").type)
    more = pa.table([others, profiles], schema=schemas.USERS)
    return pa.concat_tables([raw.users, more]).combine_chunks()


def read_log(raw: RawData, users: pa.Table) -> tuple[Log, dict[str, Any]]:
    """Steps 1 and 3 of the protocol, and counts of what was read and dropped.

    `users` is what `all_users` gives. Raises DataError if no interaction has a known item.
    """
    table = raw.interactions.combine_chunks()
    item_ids = raw.catalog.column("item_id").combine_chunks()
    item = pc.index_in(table.column("item_id"), value_set=item_ids)
    known = pc.is_valid(item)
    counts: dict[str, Any] = {
        "interactions_read": table.num_rows,
        "interactions_without_item": table.num_rows - (pc.sum(known).as_py() or 0),
    }
    table, item = table.filter(known), item.filter(known)
    if not table.num_rows:
        raise DataError(
            f"{counts['interactions_read']} interactions were read, none of them with an item of "
            f"the catalog ({raw.catalog.num_rows} items): do the files belong together?"
        )
    user_ids = users.column("user_id").combine_chunks()
    user = pc.index_in(table.column("user_id"), value_set=user_ids).to_numpy().astype(np.int64)
    time = pc.fill_null(table.column("timestamp"), 0).to_numpy()
    log = Log(
        user,
        item.to_numpy().astype(np.int64),
        pc.fill_null(table.column("rating"), float("nan")).to_numpy(),
        table.column("timestamp").combine_chunks(),
    ).take(np.lexsort((time, user)))  # stable: ties keep the file order
    _, earliest = np.unique(log.user * len(item_ids) + log.item, return_index=True)
    counts["repeated_interactions"] = len(log.user) - len(earliest)
    return log.take(np.sort(earliest)), counts


def core(log: Log, protocol: Protocol) -> Log:
    """Step 2 of the protocol: the largest part in which all users and items have enough."""
    user, item = log.user, log.item
    mask = np.ones(len(user), dtype=bool)
    while True:
        of_user = np.bincount(user[mask], minlength=user.max() + 1)
        of_item = np.bincount(item[mask], minlength=item.max() + 1)
        enough = (of_user[user] >= protocol.min_user_interactions) & (
            of_item[item] >= protocol.min_item_interactions
        )
        if not (mask & ~enough).any():
            return log.take(np.flatnonzero(mask))
        mask &= enough
