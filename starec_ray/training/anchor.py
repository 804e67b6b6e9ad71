"""Stage one's material: what is learned, in which order, and what is held out."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from starec_ray.agent.agent import Agent
from starec_ray.errors import DataError
from starec_ray.training import sequences


class AnchorData:
    """Traces as batches of token sequences, a seeded shuffle each epoch.

    Args:
        traces: `schemas.TRACES`.
        longest_replies: kind of trace → tokens that a reply of that kind may take when it is
            sampled; longer ones would teach what can't be finished and are left out.
        weights: kind of trace → its weight in the loss; 1 where a kind isn't named.
        held_out_share: share of the users, rounded down, whose traces are never learned.

    Attributes:
        too_long: traces left out.

    Raises:
        DataError: if no trace is left.
    """

    def __init__(
        self,
        traces: pa.Table,
        agent: Agent,
        tokenizer: Any,
        *,
        longest_replies: Mapping[str, int],
        weights: Mapping[str, float],
        held_out_share: float,
        epochs: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self.epochs, self._batch_size, self._seed = epochs, batch_size, seed
        table = sequences.from_traces(traces, agent, tokenizer, weights)
        tokens = pc.list_value_length(table["reply_ids"]).to_numpy()
        most = np.array([longest_replies[kind] for kind in traces["kind"].to_pylist()], int)
        self.too_long = int((tokens > most).sum())
        if self.too_long == len(traces):
            raise DataError(
                f"there is no trace to learn: {len(traces)} were given, and {self.too_long} are "
                f"longer than max_rank_tokens or max_reflect_tokens ({dict(longest_replies)}; the "
                f"shortest has {tokens.min() if len(tokens) else 0})."
            )
        fits = pa.array(tokens <= most)
        traces, table = traces.filter(fits), table.filter(fits)
        users = [agent.dataset.case(case_id).user_id for case_id in traces["case_id"].to_pylist()]
        held_out = _are_held_out(np.array(users), held_out_share, seed)
        self.train = table.filter(pa.array(~held_out))
        self.held_out = table.filter(pa.array(held_out))

    @property
    def updates_per_epoch(self) -> int:
        """Optimiser steps of one pass over the traces."""
        return -(-len(self.train) // self._batch_size)

    @property
    def updates(self) -> int:
        """Optimiser steps of the stage."""
        return self.epochs * self.updates_per_epoch

    def batch(self, step: int) -> pa.Table:
        """What optimiser step `step`, 0 … updates - 1, learns: `schemas.SEQUENCES`."""
        epoch, number = divmod(step, self.updates_per_epoch)
        order = np.random.default_rng((self._seed, epoch)).permutation(len(self.train))
        return self.train.take(order[number * self._batch_size :][: self._batch_size])


def _are_held_out(users: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Of each trace's user whether that one is held out: bool [traces]."""
    everyone = np.unique(users)
    chosen = np.random.default_rng(seed).permutation(everyone)[: int(share * len(everyone))]
    return np.isin(users, chosen)
