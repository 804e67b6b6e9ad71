"""`starec data prepare`: a source's files → the five tables and the manifest of a data folder."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from starec_ray.data.cases import make_cases
from starec_ray.data.protocol import Protocol
from starec_ray.data.raw import RawData, Say
from starec_ray.data.sources import amazon, movielens, recbole, synthetic
from starec_ray.data.store import check_out, clear_abandoned, write_folder
from starec_ray.errors import DataError
from starec_ray.files import sha256_of

SIMULATED_USERS = 1000

_READERS: dict[str, Callable[..., RawData]] = {
    "movielens-1m": movielens.read_1m,
    "movielens-100k": movielens.read_100k,
    "recbole": recbole.read,
    "amazon": amazon.read,
}
SOURCES = ("synthetic", *_READERS)

# The protocol's defaults for each layout that a reader gives. They are the paper's where the
# source is large enough.
DEFAULTS: dict[str, Protocol] = {
    "movielens-1m": Protocol(),
    "movielens-100k": Protocol(train_users=400, validation_users=100, test_users=300),
    "recbole": Protocol(),
    # Interactions as sequences come as samples of about a hundred users, already filtered.
    "recbole-sequences": Protocol(
        min_user_interactions=1,
        min_item_interactions=1,
        train_users=40,
        validation_users=10,
        test_users=50,
    ),
    # Labels are 0 or 1: whether the user liked it.
    "recbole-labels": Protocol(positive_above=0.0),
    "amazon": Protocol(),
    "synthetic": Protocol(
        min_item_interactions=1, train_users=400, validation_users=100, test_users=200
    ),
}


@dataclass(frozen=True, slots=True)
class Report:
    """What was prepared: the folder, the protocol used, and the manifest's counts."""

    out: Path
    protocol: Protocol
    counts: dict[str, Any]


def prepare(
    source: str,
    out: str | Path,
    *,
    folder: str | Path | None = None,
    force: bool = False,
    skip_bad_rows: bool = False,
    simulated_users: int = SIMULATED_USERS,
    say: Say = lambda message: None,
    **parameters: Any,
) -> Report:
    """Write the data folder `out` from a source named in `SOURCES`.

    `folder` holds the published files (none for "synthetic"). `parameters` are fields of
    `Protocol`; those missing or None take the source's defaults. `say` is told of each phase.
    Raises DataError for unusable input, bad rows (unless `skip_bad_rows`), too few users, or an
    `out` in use (unless `force`), and StorageError for an `out` that can't be written; `out` then
    is as it was before.
    """
    if source not in SOURCES:
        raise DataError(f"there is no source {source!r}: take one of {', '.join(SOURCES)}.")
    clear_abandoned(Path(out))
    check_out(Path(out), force=force)  # before the work, not only after it
    given = {name: value for name, value in parameters.items() if value is not None}
    Protocol(**given)  # wrong values show before the reading
    if source == "synthetic":
        if folder is not None:
            raise DataError("the synthetic source reads no files: leave --source out.")
        seed = given.get("seed", DEFAULTS[source].seed)
        raw = synthetic.read(simulated_users, seed, say)
    else:
        if folder is None:
            raise DataError(f"{source} needs the folder of its files: give --source.")
        if not Path(folder).is_dir():
            raise DataError(f"--source {folder} is not a folder.")
        raw = _READERS[source](Path(folder), skip_bad_rows, say)
    protocol = replace(DEFAULTS[raw.layout], **given)
    prepared = make_cases(raw, protocol, say)
    say("writing tables")
    options: dict[str, Any] = {"skip_bad_rows": skip_bad_rows}
    if source == "synthetic":
        options["simulated_users"] = simulated_users
    counts = prepared.counts | {"skipped_bad_rows": dict(raw.skipped_rows)}
    if raw.unreadable_years:
        counts["unreadable_years"] = raw.unreadable_years
    if raw.unplaced:
        counts["unplaced_interactions"] = sum(map(len, raw.unplaced.values()))
    manifest = {
        "source": source,
        "layout": raw.layout,
        "seed": protocol.seed,
        "parameters": asdict(protocol) | options,
        "counts": counts,
        "inputs": {path.name: sha256_of(path) for path in raw.inputs},
    }
    write_folder(Path(out), prepared.tables, manifest, force=force)
    return Report(Path(out), protocol, counts)
