"""The evaluation protocol: from raw interactions to leave-one-out ranking cases.

In this order:
1. Interactions with an item that has no catalog entry are dropped, then all but the earliest of a
   user's interactions with the same item.
2. Users and items with too few interactions are dropped, again and again until none is left
   (a k-core).
3. A user's time order is by timestamp as published, fractions of a second too; ties (and sources
   without timestamps) by file order.
4. Eligible users have at least `rounds` positive interactions, and something before the first of
   the last `rounds`. They are shuffled with the seed and dealt to test, validation and train, in
   that order, so that more training users leave the test users as they are.
5. The last `rounds` positive interactions are the targets of rounds 0 … rounds-1; the history of
   a case is everything of the user before its target, cut to the last `max_history`.
6. Candidates are the target and `negatives` items drawn uniformly from the catalog items that
   the user never interacted with in the whole file, shuffled. Each case has its own random
   stream, made of the seed, the user and the round. No two candidates of a case share title and
   year, or a reply couldn't tell them apart. Where a source comes with candidates for a user,
   those are taken first, in their order: the last round the first of them, the round before it
   those that follow. Those that aren't taken are counted by cause.
"""

import math
from dataclasses import asdict, dataclass

from starec_ray.errors import DataError

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Protocol:
    """The protocol's parameters. The defaults are the STARec paper's (arXiv 2508.18812), but for
    `validation_users` and `rounds`, which it doesn't give.
    """

    # Users with fewer interactions are dropped (with the items, repeated until stable).
    min_user_interactions: int = 10
    # Items with fewer interactions are dropped.
    min_item_interactions: int = 10
    # The history of a case is cut to the user's last so many interactions.
    max_history: int = 40
    # A rating above this is positive; everything is, where the source has no ratings.
    positive_above: float = 3.0
    train_users: int = 1000
    validation_users: int = 200
    test_users: int = 1000
    # Random items beside the target in each case's candidates.
    negatives: int = 19
    # The same in the cases of training users; None: as many. Fewer make shorter prompts, and what
    # an agent learns of an item it can use in longer lists.
    train_negatives: int | None = None
    # Consecutive cases of each user; the last is the leave-one-out case.
    rounds: int = 2
    # Everything random follows from it.
    seed: int = 0

    def __post_init__(self) -> None:
        lowest = {"max_history": 1, "negatives": 1, "train_negatives": 1, "rounds": 1}
        for name, value in asdict(self).items():
            if name == "positive_above" or value is None:
                continue
            if value < lowest.get(name, 0):
                raise DataError(f"{name} is {value}, must be at least {lowest.get(name, 0)}.")
        if not math.isfinite(self.positive_above):
            raise DataError(f"positive_above is {self.positive_above}, must be a finite number.")
        if self.rounds > 127:
            raise DataError(f"rounds is {self.rounds}, must be at most 127.")
        if self.train_users + self.validation_users + self.test_users == 0:
            raise DataError("train_users, validation_users and test_users are all 0.")

    def negatives_of(self, split: str) -> int:
        """Negatives in a case of this split."""
        if split == "train" and self.train_negatives is not None:
            return self.train_negatives
        return self.negatives
