"""From raw data to the five tables of a data folder: the protocol, step by step."""

from collections.abc import Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from starec_ray import schemas
from starec_ray.data.candidates import NegativeDraw
from starec_ray.data.log import Log, all_users, core, read_log
from starec_ray.data.protocol import SPLITS, Protocol
from starec_ray.data.raw import RawData, Say
from starec_ray.errors import DataError

# The order in which shuffled users are dealt out.
_DEALT = ("test", "validation", "train")


@dataclass(frozen=True, slots=True)
class Prepared:
    """The five tables of a data folder by name, and what was counted on the way."""

    tables: dict[str, pa.Table]
    counts: dict[str, Any]


def make_cases(raw: RawData, protocol: Protocol, say: Say) -> Prepared:
    """Filter, split and cut the raw data into the five tables of a data folder.

    Raises DataError if too few users are eligible, or the catalog is too small for the negatives.
    """
    say("sorting interactions by time")
    users = all_users(raw)
    whole, counts = read_log(raw, users)
    say("dropping rare users and items")
    log = core(whole, protocol)
    in_use = np.unique(log.item)
    counts["interactions"] = len(log.user)
    counts["users"] = len(np.unique(log.user))
    counts["items"] = len(in_use)

    positive = _positive(log.rating, protocol.positive_above)
    if unrated := int(np.isnan(log.rating).sum()):
        counts["interactions_without_rating"] = unrated
    targets_UR = _targets(log, positive, users.num_rows, protocol)
    eligible = np.flatnonzero(targets_UR[:, 0] >= 0)
    counts["eligible_users"] = len(eligible)
    splits = _deal(eligible, counts, protocol)
    counts["cases"] = {split: len(splits[split]) * protocol.rounds for split in SPLITS}

    say("drawing candidates")
    draw = NegativeDraw(raw.catalog, in_use, raw.given_candidates, raw.unplaced)
    user_ids = users.column("user_id").combine_chunks()
    item_ids = raw.catalog.column("item_id").combine_chunks()
    cases, targets = _cut(
        whole, log, positive, targets_UR, splits, user_ids, item_ids, draw, protocol
    )

    if raw.given_candidates:
        in_log = user_ids.take(pa.array(np.unique(whole.user))).to_pylist()
        with_case = cases.column("user_id").to_pylist()
        counts |= _unused_lists(raw.given_candidates.keys(), set(in_log), set(with_case))
        counts |= draw.counts

    hidden = targets_UR[np.concatenate([splits[split] for split in SPLITS])].ravel()
    popularity = np.bincount(np.delete(log.item, hidden), minlength=len(item_ids))
    catalog = raw.catalog.append_column(
        schemas.CATALOG.field("popularity"), pa.array(popularity, pa.int64())
    )
    return Prepared(
        {
            "catalog": catalog.take(pa.array(in_use)).combine_chunks(),
            "users": users.take(pa.array(np.unique(log.user))).combine_chunks(),
            "interactions": log.table(user_ids, item_ids),
            "cases": cases,
            "targets": targets,
        },
        counts,
    )


def _positive(rating: np.ndarray, above: float) -> np.ndarray:
    """Which ratings are above that; true for NaN, no rating."""
    limit = float(np.finfo(np.float32).max)  # a float32 can't be compared with what is larger
    return ~(rating <= np.float32(min(max(above, -limit), limit)))


def _unused_lists(users: Set[str], in_log: set[str], with_case: set[str]) -> dict[str, int]:
    """Counts of the published candidate lists that are of no use, of all that `users` have."""
    return {
        "given_lists_without_user": len(users - in_log),
        "given_lists_without_case": len((users & in_log) - with_case),
    }


def _targets(log: Log, positive: np.ndarray, users: int, protocol: Protocol) -> np.ndarray:
    """Rows into the log of each user's targets: int64 [users, rounds], -1 if not eligible."""
    starts = log.starts(users)
    rows = np.flatnonzero(positive)
    stops = np.searchsorted(rows, starts[1:])
    counts = stops - np.searchsorted(rows, starts[:-1])
    targets_UR = np.full((len(stops), protocol.rounds), -1, dtype=np.int64)
    enough = np.flatnonzero(counts >= protocol.rounds)
    last = stops[enough][:, None] - np.arange(protocol.rounds, 0, -1)
    found = rows[last]
    with_history = found[:, 0] > starts[:-1][enough]
    targets_UR[enough[with_history]] = found[with_history]
    return targets_UR


def _deal(
    eligible: np.ndarray, counts: dict[str, Any], protocol: Protocol
) -> dict[str, np.ndarray]:
    """Step 4: the user codes of each split."""
    wanted = {split: getattr(protocol, f"{split}_users") for split in _DEALT}
    if sum(wanted.values()) > len(eligible):
        asked = " + ".join(f"{wanted[split]} {split}" for split in SPLITS)
        raise DataError(
            f"too few users: {asked} = {sum(wanted.values())} are asked for, {len(eligible)} are "
            f"eligible (of {counts['users']} users with at least "
            f"{protocol.min_user_interactions} interactions; eligible ones have at least "
            f"{protocol.rounds} positive ones with something before them). Lower --train-users, "
            "--validation-users or --test-users, or the minimum interactions."
        )
    shuffled = np.random.default_rng(protocol.seed).permutation(eligible)
    bounds = np.cumsum([0] + [wanted[split] for split in _DEALT])
    return {split: shuffled[bounds[i] : bounds[i + 1]] for i, split in enumerate(_DEALT)}


def _cut(
    whole: Log,
    log: Log,
    positive: np.ndarray,
    targets_UR: np.ndarray,
    splits: dict[str, np.ndarray],
    user_ids: pa.Array,
    item_ids: pa.Array,
    draw: NegativeDraw,
    protocol: Protocol,
) -> tuple[pa.Table, pa.Table]:
    """Steps 5 and 6: the cases and, apart, their targets (schemas CASES and TARGETS)."""
    starts, touched_starts = log.starts(len(user_ids)), whole.starts(len(user_ids))
    users: list[str] = user_ids.to_pylist()
    items = np.array(item_ids.to_pylist(), dtype=object)
    rows: dict[str, list[Any]] = {field.name: [] for field in schemas.CASES}
    target_ids: list[str] = []
    for split in SPLITS:
        count = protocol.negatives_of(split)
        for user in splits[split].tolist():
            # What the user ever touched, filtered out later or not, is no negative.
            touched = whole.item[touched_starts[user] : touched_starts[user + 1]]
            untouched = draw.untouched(users[user], touched)
            for round_, row in enumerate(targets_UR[user].tolist()):
                last = round_ == protocol.rounds - 1
                rng = np.random.default_rng([protocol.seed, user, round_])
                block = protocol.rounds - 1 - round_
                negatives = draw.draw(rng, untouched, count, block)
                if negatives is None:
                    raise DataError(
                        f"user {users[user]!r} left too few items of the catalog untouched for "
                        f"{count} negatives that differ in title or year: lower --negatives "
                        "or --train-negatives."
                    )
                candidates = rng.permutation(np.append(negatives, log.item[row]))
                first = max(starts[user], row - protocol.max_history)
                rows["case_id"].append(f"{users[user]}/{round_}")
                rows["user_id"].append(users[user])
                rows["split"].append(split)
                rows["round"].append(round_)
                rows["next_case_id"].append(None if last else f"{users[user]}/{round_ + 1}")
                rows["history"].append(items[log.item[first:row]].tolist())
                rows["history_liked"].append(positive[first:row].tolist())
                rows["candidates"].append(items[candidates].tolist())
                rows["activity"].append(int(starts[user + 1] - starts[user]))
                target_ids.append(items[log.item[row]])
    targets = {"case_id": rows["case_id"], "item_id": target_ids}
    return pa.table(rows, schema=schemas.CASES), pa.table(targets, schema=schemas.TARGETS)
