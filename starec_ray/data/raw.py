"""What every source gives: its items, users and interactions as Arrow tables, not yet filtered."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from starec_ray import schemas

# Tells a person which phase is running.
Say = Callable[[str], None]

RAW_CATALOG = pa.schema([f for f in schemas.CATALOG if f.name != "popularity"])
RAW_INTERACTIONS = pa.schema(
    [
        *(f for f in schemas.INTERACTIONS if f.name not in ("timestamp", "position")),
        pa.field("timestamp", pa.float64()),  # seconds; their fraction may tell the order
    ]
)
TIME_LIMIT = 2.0**62  # timestamps are smaller than that, so that whole seconds are int64


@dataclass(frozen=True)
class RawData:
    """A source as published.

    `layout` names the reader and the protocol defaults that fit it. `catalog` has the schema
    RAW_CATALOG with unique item ids, `users` the schema USERS with unique user ids (users found
    in the interactions alone are added later, with an empty profile), `interactions` the schema
    RAW_INTERACTIONS in file order. `given_candidates` maps a user id to published candidate item
    ids, for sources that come with them. `unplaced` maps a user id to the ids of further items
    that the user interacted with, nobody knows when: they are in no history, but no negatives
    either. `inputs` are the files read; `skipped_rows` counts the bad rows left out, by file
    name, `unreadable_years` the items that are without a year because what stood there was none.
    """

    layout: str
    catalog: pa.Table
    users: pa.Table
    interactions: pa.Table
    given_candidates: Mapping[str, list[str]] = field(default_factory=dict)
    unplaced: Mapping[str, list[str]] = field(default_factory=dict)
    inputs: tuple[Path, ...] = ()
    skipped_rows: Mapping[str, int] = field(default_factory=dict)
    unreadable_years: int = 0


def users_table(profiles: Mapping[str, Mapping[str, str]]) -> pa.Table:
    """User id → profile as a table of schema USERS, in the mapping's order."""
    return pa.table(
        [
            pa.array(profiles.keys(), pa.string()),
            pa.array(
                [list(profile.items()) for profile in profiles.values()],
                schemas.USERS.field("profile").type,
            ),
        ],
        schema=schemas.USERS,
    )
