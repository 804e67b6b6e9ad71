"""Log-probs of reply tokens from a causal language model, without the logits of the others."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.autograd import Function
from transformers import PreTrainedModel

from learners.attention import PACKED_GROUPS, attention_arguments
from learners.spans import FamilySpan
from learners.trainable import check_trainable

# Gradients of logits held at once, for one product of all of them. In float32 they take 256 MiB,
# whatever the vocabulary.
CHUNK_LOGITS = 2**26
# Logits computed at once on a CPU: what is done with them finds them in its cache.
TILE_ROWS, TILE_TOKENS = 512, 4096
VANISHING = -1e4  # e^-10000 is 0, and unlike -∞ it can be multiplied by 0


class _TokenLogProbs(Function):
    """log softmax(h·Wᵀ / T)[target] and the entropy, tile by tile; again backward.

    The normaliser is a running log-sum-exp over the tiles of a row, as in online softmax (arXiv
    1805.02867).
    """

    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, targets_N, temperatures_N, with_entropy):
        logprobs_N = hidden_ND.new_empty(len(hidden_ND), dtype=torch.float32)
        normaliser_N = torch.empty_like(logprobs_N)
        entropy_N = torch.full_like(logprobs_N, torch.nan)
        for rows, tiles in _tiles(hidden_ND, weight_VD):
            hidden_RD, targets_R = hidden_ND[rows], targets_N[rows]
            # Of the tiles so far: the largest logit; the sums of e^(logit - largest), alone and
            # times (logit - largest).
            largest_R = torch.full_like(normaliser_N[rows], -torch.inf)
            sum_R, product_R, picked_R = (torch.zeros_like(largest_R) for _ in range(3))
            for tile in tiles:
                logits_RT = _logits(hidden_RD, weight_VD[tile], temperatures_N[rows])
                places_R = targets_R - tile.start
                inside_R = (places_R >= 0) & (places_R < logits_RT.shape[1])
                places_R = places_R.where(inside_R, 0)
                found_R = logits_RT.gather(1, places_R[:, None]).squeeze(1)
                picked_R = found_R.where(inside_R, picked_R)
                before_R, largest_R = largest_R, torch.maximum(largest_R, logits_RT.amax(dim=1))
                shift_R = (before_R - largest_R).clamp(min=VANISHING)
                logits_RT.sub_(largest_R[:, None])
                odds_RT = logits_RT.exp()
                if with_entropy:
                    product_R = (product_R + sum_R * shift_R) * shift_R.exp()
                    product_R += logits_RT.mul_(odds_RT).sum(dim=1)
                sum_R = sum_R * shift_R.exp() + odds_RT.sum(dim=1)
            normaliser_N[rows] = largest_R + sum_R.log()
            logprobs_N[rows] = (picked_R - largest_R) - sum_R.log()
            if with_entropy:
                entropy_N[rows] = sum_R.log() - product_R / sum_R
        ctx.save_for_backward(
            hidden_ND, weight_VD, targets_N, temperatures_N, normaliser_N, logprobs_N
        )
        ctx.mark_non_differentiable(entropy_N)
        return logprobs_N, entropy_N

    @staticmethod
    def backward(ctx, grad_N, _grad_entropy):
        hidden_ND, weight_VD, targets_N, temperatures_N, normaliser_N, logprobs_N = (
            ctx.saved_tensors
        )
        scales_N = grad_N / temperatures_N
        of_targets_N = scales_N * -torch.expm1(logprobs_N)
        grad_hidden_ND = torch.zeros_like(hidden_ND)
        grad_weight_VD: Tensor | None = None
        for chunk in _slices(len(hidden_ND), max(1, CHUNK_LOGITS // len(weight_VD))):
            hidden_CD, scales_C = hidden_ND[chunk], scales_N[chunk]
            grad_CV = hidden_CD.new_empty(len(hidden_CD), len(weight_VD))
            for rows, tiles in _tiles(hidden_CD, weight_VD):
                for tile in tiles:
                    logits_RT = _logits(
                        hidden_CD[rows], weight_VD[tile], temperatures_N[chunk][rows]
                    )
                    odds_RT = logits_RT.sub_(normaliser_N[chunk][rows, None]).exp_()
                    grad_CV[rows, tile] = odds_RT.mul_(-scales_C[rows, None])
            rows_C = torch.arange(len(hidden_CD), device=hidden_CD.device)
            grad_CV[rows_C, targets_N[chunk]] = of_targets_N[chunk].to(grad_CV.dtype)
            grad_hidden_ND[chunk] = grad_CV @ weight_VD
            if grad_weight_VD is None:
                grad_weight_VD = grad_CV.T @ hidden_CD
            else:  # of many parts: a sum in float32 at least
                exact = torch.promote_types(grad_weight_VD.dtype, torch.float32)
                grad_weight_VD = grad_weight_VD.to(exact).add_(grad_CV.T @ hidden_CD)
        if grad_weight_VD is None:  # no target
            grad_weight_VD = torch.zeros_like(weight_VD)
        return grad_hidden_ND, grad_weight_VD.to(weight_VD.dtype), None, None, None


def _tiles(hidden_RD: Tensor, weight_VD: Tensor) -> Iterator[tuple[slice, list[slice]]]:
    """Rows, and all the tokens of the vocabulary for them, a tile each."""
    on_cpu = hidden_RD.device.type == "cpu"
    size = TILE_TOKENS if on_cpu else len(weight_VD)
    most = TILE_ROWS if on_cpu else max(1, CHUNK_LOGITS // len(weight_VD))
    for rows in _slices(len(hidden_RD), most):
        yield rows, _slices(len(weight_VD), size)


def _slices(length: int, size: int) -> list[slice]:
    return [slice(i, min(i + size, length)) for i in range(0, length, size)]


def _logits(hidden_CD: Tensor, weight_VD: Tensor, temperatures_C: Tensor) -> Tensor:
    return (hidden_CD @ weight_VD.T).float().div_(temperatures_C[:, None])


def _choice_logprobs(
    hidden_CD: Tensor,
    weight_UD: Tensor,
    picked_C: Tensor,
    temperatures_C: Tensor,
    mask_CU: Tensor,
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies of targets chosen among few tokens, (C,) float32 each.

    `picked_C` are indices into the U choices, of which `mask_CU` leaves each target its own.
    """
    logits_CU = _logits(hidden_CD, weight_UD, temperatures_C).masked_fill(~mask_CU, -torch.inf)
    logprobs_CU = logits_CU.log_softmax(dim=1)
    with torch.no_grad():
        entropy_C = torch.special.entr(logprobs_CU.exp()).sum(dim=1)
    return logprobs_CU.gather(1, picked_C[:, None]).squeeze(1), entropy_C


class LogProbHead(nn.Module):
    """The language model's output layer, fused with the log-softmax.

    A module of its own around the shared weight, so that ZeRO-3 gathers it around the forward
    and the backward pass.
    """

    def __init__(self, weight_VD: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight_VD

    def forward(
        self,
        hidden_ND: Tensor,
        targets_N: Tensor,
        temperatures_N: Tensor,
        choice_ids_U: Tensor,
        choice_mask_NU: Tensor,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies (nats), (N,) float32 each; only the log-probs have gradients.

        A target with choices takes its part of their probability alone. Entropies over the whole
        vocabulary are NaN unless they are asked for.
        """
        constrained_N = choice_mask_NU.any(dim=1)
        free, bound = (~constrained_N).nonzero()[:, 0], constrained_N.nonzero()[:, 0]
        free_logprobs, free_entropy = _TokenLogProbs.apply(
            hidden_ND[free], self.weight, targets_N[free], temperatures_N[free], with_entropy
        )
        if not len(bound):
            return free_logprobs, free_entropy
        bound_logprobs, bound_entropy = _choice_logprobs(
            hidden_ND[bound],
            self.weight[choice_ids_U],
            torch.searchsorted(choice_ids_U, targets_N[bound]),
            temperatures_N[bound],
            choice_mask_NU[bound],
        )
        logprobs_N = hidden_ND.new_zeros(len(targets_N), dtype=torch.float32)
        entropy_N = torch.zeros_like(logprobs_N)
        return (
            logprobs_N.index_copy(0, free, free_logprobs).index_copy(0, bound, bound_logprobs),
            entropy_N.index_copy(0, free, free_entropy).index_copy(0, bound, bound_entropy),
        )


class ReplyScorer(nn.Module):
    """A Hugging Face causal language model that scores the replies of packed micro-batches."""

    def __init__(self, language_model: PreTrainedModel) -> None:
        super().__init__()
        check_trainable(language_model)
        self.language_model = language_model
        self.head = LogProbHead(language_model.get_output_embeddings().weight)
        language_model.set_attn_implementation(PACKED_GROUPS)

    def forward(
        self,
        token_ids_W: Tensor,
        positions_W: Tensor,
        spans: Sequence[FamilySpan],
        predictors_N: Tensor,
        targets_N: Tensor,
        temperatures_N: Tensor,
        choice_ids_U: Tensor,
        choice_mask_NU: Tensor,
        *,
        with_entropy: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Log-probs at the temperatures and entropies of the targets: (N,) float32 each.

        Shapes as in `learners.batching.MicroBatch`. Without `with_entropy` the entropies are not
        to be used.
        """
        hidden_1WD = self.language_model.base_model(
            input_ids=token_ids_W[None],
            position_ids=positions_W[None],
            use_cache=False,
            **attention_arguments(self.language_model.config, spans, positions_W),
        ).last_hidden_state
        hidden_ND = hidden_1WD[0].index_select(0, predictors_N)
        return self.head(
            hidden_ND, targets_N, temperatures_N, choice_ids_U, choice_mask_NU, with_entropy
        )
