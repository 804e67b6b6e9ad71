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

    def new_req_logits_processor(
        self, params: SamplingParams
    ) -> Callable[[Sequence[int], torch.Tensor], torch.Tensor] | None:
        form = (params.extra_args or {}).get(REPLY_FORM)
        return _Keeper(ReplyForm(**form)) if form else None


class _Keeper:
    """One request's place in its form."""

    def __init__(self, form: ReplyForm) -> None:
        self._cursor = form.start()
        self._seen = 0

    def __call__(self, reply_ids: Sequence[int], logits_V: torch.Tensor) -> torch.Tensor:
        for token in reply_ids[self._seen :]:
            self._cursor.take(token)
        self._seen = len(reply_ids)
        choices = torch.tensor(self._cursor.choices(), device=logits_V.device)
        kept_V = torch.full_like(logits_V, float("-inf"))
        kept_V[choices] = logits_V[choices]
        return kept_V
