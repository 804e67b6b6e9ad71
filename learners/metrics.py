"""The numbers of one update, over all learners."""

import torch
import torch.distributed as dist

from learners.batching import Plan
from learners.groups import COMPONENTS
from learners.objectives import TokenStats


class BatchStats:
    """Sums token statistics over micro-batches, then over learners."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(2 * len(COMPONENTS) + 5, dtype=torch.float64, device=device)
        self.ratio_max = torch.zeros((), device=device)

    def add(self, stats: TokenStats) -> None:
        """One micro-batch more."""
        scalars = torch.stack(
            [stats.ratio, stats.clipped, stats.truncated, stats.logprob_gap, stats.entropy]
        )
        self.sums += torch.cat([stats.component_losses, stats.component_kl, scalars])
        self.ratio_max = torch.maximum(self.ratio_max, stats.ratio_max)

    def reduce(self, batch: Plan, *, kl_coeff: float) -> dict[str, float]:
        """The batch's metrics, the same on all learners. Collective.

        - loss: what was minimised; anchor_loss, rank_loss, reflect_loss: its parts without the KL
          term, each a mean over the component's reply tokens.
        - kl (k3 estimate, nats), ratio_mean, ratio_max, clip_fraction (outside the clipping
          range, on the side that loses its gradient when clipped), truncated_fraction (ratio
          above ratio_cap), and logprob_gap (mean |trained - sampled| log-prob before the update):
          over the rollouts' reply tokens. The ratio is the raw one, neither clipped nor
          truncated.
        - entropy: nats, exact, at the sampling temperature (traces: 1), over all reply tokens.
        - reply_tokens; tokens: inputs, a prompt once in each micro-batch that has replies to it,
          whatever families save.

        What the batch has no tokens for is left out.
        """
        dist.all_reduce(self.sums)
        dist.all_reduce(self.ratio_max, op=dist.ReduceOp.MAX)
        n, sums = len(COMPONENTS), self.sums.tolist()
        losses, kls = sums[:n], sums[n : 2 * n]
        ratio, clipped, truncated, gap, entropy = sums[2 * n :]
        counts = [batch.component_tokens[name] for name in COMPONENTS]
        parts = {
            f"{name}_loss": loss / count
            for name, loss, count in zip(COMPONENTS, losses, counts, strict=True)
            if count
        }
        kl_term = sum(kl / count for kl, count in zip(kls, counts, strict=True) if count)
        metrics = {
            "loss": sum(parts.values()) + kl_coeff * kl_term,
            **parts,
            "entropy": entropy / sum(counts),
            "reply_tokens": float(sum(counts)),
            "tokens": float(batch.tokens),
        }
        if policy_tokens := sum(counts) - batch.component_tokens["anchor"]:
            if kl_coeff:
                metrics["kl"] = sum(kls) / policy_tokens
            metrics |= {
                "ratio_mean": ratio / policy_tokens,
                "ratio_max": self.ratio_max.item(),
                "clip_fraction": clipped / policy_tokens,
                "truncated_fraction": truncated / policy_tokens,
                "logprob_gap": gap / policy_tokens,
            }
        return metrics
