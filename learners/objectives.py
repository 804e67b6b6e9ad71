"""What is minimised: a sum over components of per-token losses, each a mean over its tokens.

    loss = Σ_c  (1 / N_c) Σ_{t in c} loss_t        c in anchor, rank, reflect

N_c counts component c's reply tokens in the whole batch, over all learners and micro-batches.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from learners.groups import COMPONENTS

ANCHOR = COMPONENTS.index("anchor")
# e^20 keeps the ratio finite in float32; the clipped objective is flat long before.
MAX_LOG_RATIO = 20.0


def importance_ratio(logprobs_N: Tensor, sampled_N: Tensor) -> Tensor:
    """π(token) / π_sampled(token), from log-probs at the sampling temperature: (N,) float32."""
    return (logprobs_N - sampled_N).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def truncated_losses(
    ratio_N: Tensor, logprobs_N: Tensor, advantages_N: Tensor, cap: float
) -> Tensor:
    """-min(r, cap)·A·log π, the weight min(r, cap) held constant: (N,).

    Truncated importance sampling (Ionides 2008; as V-trace's ρ̄ in IMPALA, arXiv 1802.01561): of
    rollouts that older weights sampled, each token counts by how likely the weights of now make
    it, up to a cap that bounds the variance. No token loses its gradient. What older weights wrote
    before a token, and after it, isn't corrected: exact for replies of one token, for longer ones
    to first order in how far the weights have moved (as in TRPO, arXiv 1502.05477, section 2).
    """
    return -ratio_N.detach().clamp(max=cap) * advantages_N * logprobs_N


def clipped(ratio_N: Tensor, advantages_N: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """Where clipping holds the gradient back: (N,) bool."""
    too_high = (advantages_N > 0) & (ratio_N > 1 + clip_high)
    too_low = (advantages_N < 0) & (ratio_N < 1 - clip_low)
    return too_high | too_low


def policy_losses(
    ratio_N: Tensor, advantages_N: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """-min(r·A, clip(r, 1 - clip_low, 1 + clip_high)·A): (N,). GRPO, arXiv 2402.03300, eq. 3."""
    bounded_N = ratio_N.clamp(1 - clip_low, 1 + clip_high)
    return -torch.minimum(ratio_N * advantages_N, bounded_N * advantages_N)


def kl_losses(logprobs_N: Tensor, reference_N: Tensor) -> Tensor:
    """Estimate of KL(π ‖ reference), never negative: (N,). GRPO, arXiv 2402.03300, eq. 4.

    Schulman's k3: e^d - d - 1 with d = log reference - log π.
    """
    d_N = (reference_N - logprobs_N).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return d_N.exp() - d_N - 1


@dataclass(frozen=True, slots=True)
class Objective:
    """The coefficients of the loss.

    `off_policy` takes the truncated policy loss, for rollouts of older weights, else the clipped
    one.
    """

    clip_low: float
    clip_high: float
    kl_coeff: float
    ratio_cap: float
    off_policy: bool


@dataclass(frozen=True, slots=True)
class TokenStats:
    """Sums over this micro-batch's tokens (`ratio_max`: the maximum), scalars but where said."""

    component_losses: Tensor  # (len(COMPONENTS),), the KL term not included
    component_kl: Tensor  # (len(COMPONENTS),)
    ratio: Tensor
    ratio_max: Tensor
    clipped: Tensor
    truncated: Tensor
    logprob_gap: Tensor
    entropy: Tensor


def token_loss(
    objective: Objective,
    *,
    logprobs_N: Tensor,
    entropy_N: Tensor,
    components_N: Tensor,
    advantages_N: Tensor,
    sampled_N: Tensor,
    reference_N: Tensor | None,
    component_weights: Tensor,
) -> tuple[Tensor, TokenStats]:
    """This micro-batch's part of the batch's loss (a scalar), and its statistics.

    The anchor's tokens take their negative log-likelihood times their trace's weight (in
    `advantages_N`), the others the clipped or the truncated policy loss and, with a reference,
    `kl_coeff` times the KL estimate. `component_weights` (len(COMPONENTS),)
    is 1 / N_c. All (N,) tensors are float32 but `components_N` (int64, index into COMPONENTS).
    """
    is_policy_N = components_N != ANCHOR
    # The anchor's traces have no sampled log-probs: their ratio is set to 1.
    sampled_N = torch.where(is_policy_N, sampled_N, logprobs_N.detach())
    ratio_N = importance_ratio(logprobs_N, sampled_N)
    if objective.off_policy:
        policy_N = truncated_losses(ratio_N, logprobs_N, advantages_N, objective.ratio_cap)
    else:
        policy_N = policy_losses(ratio_N, advantages_N, objective.clip_low, objective.clip_high)
    losses_N = torch.where(is_policy_N, policy_N, -logprobs_N * advantages_N)
    kl_N = torch.zeros_like(losses_N)
    if reference_N is not None:
        kl_N = torch.where(is_policy_N, kl_losses(logprobs_N, reference_N), kl_N)
    weights_N = component_weights[components_N]
    loss = ((losses_N + objective.kl_coeff * kl_N) * weights_N).sum()

    with torch.no_grad():
        by_component = torch.zeros_like(component_weights)
        policy_ratio_N = torch.where(is_policy_N, ratio_N, 0.0)
        clipped_N = clipped(ratio_N, advantages_N, objective.clip_low, objective.clip_high)
        return loss, TokenStats(
            component_losses=by_component.index_add(0, components_N, losses_N),
            component_kl=by_component.index_add(0, components_N, kl_N),
            ratio=policy_ratio_N.sum(),
            ratio_max=policy_ratio_N.max() if len(losses_N) else policy_ratio_N.sum(),
            clipped=(clipped_N & is_policy_N).sum(),
            truncated=(policy_ratio_N > objective.ratio_cap).sum(),
            logprob_gap=(logprobs_N - sampled_N).abs().sum(),
            entropy=entropy_N.sum(),
        )
