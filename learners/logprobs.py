"""Log-probs of reply tokens from a causal language model, without the logits of the others."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd import Function
from transformers import PreTrainedModel

from learners.attention import (
    PACKED_GROUPS,
    GroupSpan,
    attention_arguments,
    attention_windows,
)
from starec_ray.errors import ConfigError

# Logits held at once. In float32 a chunk takes 256 MiB, whatever the vocabulary.
CHUNK_LOGITS = 2**26


class _TokenLogProbs(Function):
    """log softmax(h·Wᵀ / T)[target] and the entropy; logits are computed again backward."""

    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, targets_N, temperatures_N):
        n, size = len(hidden_ND), max(1, CHUNK_LOGITS // len(weight_VD))
        logprobs_N = hidden_ND.new_empty(n, dtype=torch.float32)
        entropy_N, normaliser_N = torch.empty_like(logprobs_N), torch.empty_like(logprobs_N)
        for i in range(0, n, size):
            chunk = slice(i, i + size)
            logits_CV = _logits(hidden_ND[chunk], weight_VD, temperatures_N[chunk])
            normaliser_N[chunk] = logits_CV.logsumexp(dim=1)
            picked_C = logits_CV.gather(1, targets_N[chunk, None]).squeeze(1)
            logprobs_N[chunk] = picked_C - normaliser_N[chunk]
            shifted_CV = logits_CV.sub_(normaliser_N[chunk, None])
            entropy_N[chunk] = -(shifted_CV.exp().mul_(shifted_CV)).sum(dim=1)
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N, temperatures_N, normaliser_N)
        ctx.mark_non_differentiable(entropy_N)
        return logprobs_N, entropy_N

    @staticmethod
    def backward(ctx, grad_N, _grad_entropy):
        hidden_ND, weight_VD, targets_N, temperatures_N, normaliser_N = ctx.saved_tensors
        n, size = len(hidden_ND), max(1, CHUNK_LOGITS // len(weight_VD))
        grad_hidden_ND = torch.zeros_like(hidden_ND)
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
        for i in range(0, n, size):
            chunk = slice(i, i + size)
            logits_CV = _logits(hidden_ND[chunk], weight_VD, temperatures_N[chunk])
            grad_CV = logits_CV.sub_(normaliser_N[chunk, None]).exp_().neg_()
            grad_CV.scatter_add_(1, targets_N[chunk, None], torch.ones_like(grad_CV[:, :1]))
            grad_CV.mul_((grad_N[chunk] / temperatures_N[chunk])[:, None])
            grad_CV = grad_CV.to(hidden_ND.dtype)
            grad_hidden_ND[chunk] = grad_CV @ weight_VD
            grad_weight_VD += grad_CV.T @ hidden_ND[chunk]
        return grad_hidden_ND, grad_weight_VD.to(weight_VD.dtype), None, None


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
    ) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies (nats), (N,) float32 each; only the log-probs have gradients.

        A target with choices takes its part of their probability alone.
        """
        constrained_N = choice_mask_NU.any(dim=1)
        free, bound = (~constrained_N).nonzero()[:, 0], constrained_N.nonzero()[:, 0]
        free_logprobs, free_entropy = _TokenLogProbs.apply(
            hidden_ND[free], self.weight, targets_N[free], temperatures_N[free]
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
        check_output_layer(language_model)
        self.language_model = language_model
        self.head = LogProbHead(language_model.get_output_embeddings().weight)
        attention_windows(language_model.config)  # an error before the first step
        language_model.set_attn_implementation(PACKED_GROUPS)

    def forward(
        self,
        token_ids_W: Tensor,
        positions_W: Tensor,
        spans: Sequence[GroupSpan],
        predictors_N: Tensor,
        targets_N: Tensor,
        temperatures_N: Tensor,
        choice_ids_U: Tensor,
        choice_mask_NU: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Log-probs at the temperatures and entropies of the targets: (N,) float32 each.

        Shapes as in `learners.batching.MicroBatch`.
        """
        hidden_1WD = self.language_model.base_model(
            input_ids=token_ids_W[None],
            position_ids=positions_W[None],
            use_cache=False,
            **attention_arguments(self.language_model.config, spans, positions_W),
        ).last_hidden_state
        hidden_ND = hidden_1WD[0].index_select(0, predictors_N)
        return self.head(hidden_ND, targets_N, temperatures_N, choice_ids_U, choice_mask_NU)


def check_output_layer(language_model: PreTrainedModel) -> None:
    """Raises ConfigError unless logits are a plain h·Wᵀ of the last hidden states."""
    config, layer = language_model.config, language_model.get_output_embeddings()
    scalings = ("final_logit_softcapping", "logit_scale", "logits_scaling")
    found = [name for name in scalings if getattr(config, name, None) not in (None, 1.0)]
    if getattr(layer, "bias", None) is not None:
        found.append("a bias of the output layer")
    if not isinstance(layer, nn.Linear) or found:
        raise ConfigError(
            f"The learner can't train models of type {config.model_type!r}: it computes logits "
            f"as a plain product with the output weights, and this model has "
            f"{' and '.join(found) or 'another output layer'}."
        )
