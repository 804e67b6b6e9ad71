"""Keeps vLLM's replies to a form: see `starec_ray.agent.reply_form`."""

from collections.abc import Callable, Sequence

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from actors.engine import REPLY_FORM
from starec_ray.agent.reply_form import ReplyForm


class KeepToReplyForm(AdapterLogitsProcessor):
    """Leaves each request that has a form only the tokens that the form allows next.

    It works before the temperature, so that the log-probs of the sampled tokens are those of the
    renormalised distribution.
    """

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(  # type: ignore[override]
        self, params: SamplingParams
    ) -> Callable[[Sequence[int]], list[int]] | None:
        form = (params.extra_args or {}).get(REPLY_FORM)
        return _Keeper(ReplyForm(**form)) if form else None

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """All requests at once: one by one each would wait for a copy to the GPU."""
        kept: list[int] = []  # rows that have a form
        rows: list[int] = []  # with `tokens`: what stays in them
        tokens: list[int] = []
        for row, allowed in self.req_info.items():
            choices = allowed()
            kept.append(row)
            rows += [row] * len(choices)
            tokens += choices
        if kept:
            forms, places = _at(logits.device, kept), _at(logits.device, rows, tokens)
            values = logits[tuple(places)]
            logits.index_fill_(0, forms[0], float("-inf"))
            logits[tuple(places)] = values
        return logits


class _Keeper:
    """One request's place in its form."""

    def __init__(self, form: ReplyForm) -> None:
        self._cursor = form.start()
        self._seen = 0

    def __call__(self, reply_ids: Sequence[int]) -> list[int]:
        """The tokens that may come next."""
        for token in reply_ids[self._seen :]:
            self._cursor.take(token)
        self._seen = len(reply_ids)
        return self._cursor.choices()


def _at(device: torch.device, *indices: list[int]) -> torch.Tensor:
    """Index tensors, int64 [one each, places], copied without a wait."""
    return torch.tensor(indices, pin_memory=device.type == "cuda").to(device, non_blocking=True)
