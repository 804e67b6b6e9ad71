"""What an iteration says of its rollouts."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from starec_ray.metrics import ndcg_at


def rollout_report(
    kind: str,
    rollouts: pa.Table,
    rewards: np.ndarray,
    advantages: Sequence[np.ndarray] | None,
    target_ranks: np.ndarray | None = None,
) -> dict[str, float]:
    """Mean reward, malformed share, lengths (tokens) and groups without variance, by kind.

    Args:
        rollouts: ROLLOUTS [rows]; all else stands beside its rows.
        rewards: float32 [rows].
        advantages: of each row float32 [1] or [choices], zero in a group without variance; None
            where the rollouts form no groups.
        target_ranks: int [rows], 1-based, for NDCG@10, which is 0 of a malformed ranking.
    """
    report = {
        f"{kind}/reward": float(np.mean(rewards)),
        f"{kind}/reward_std": float(np.std(rewards)),
        f"{kind}/malformed": _mean(rollouts, "malformed"),
        f"{kind}/missing": _mean(rollouts, "missing"),
        f"{kind}/repeated": _mean(rollouts, "repeated"),
        f"{kind}/invented": _mean(rollouts, "invented"),
        f"{kind}/history_shed": _mean(rollouts, "history_shed"),
        f"{kind}/summary_cut": _mean(rollouts, "summary_cut"),
        f"{kind}/prompt_tokens": float(
            pc.mean(pc.list_value_length(rollouts.column("prompt_ids"))).as_py()
        ),
        f"{kind}/reply_tokens": float(
            pc.mean(pc.list_value_length(rollouts.column("reply_ids"))).as_py()
        ),
        f"{kind}/cut_off": float(
            pc.mean(pc.equal(rollouts.column("finish_reason"), "length").cast("int8")).as_py()
        ),
    }
    if target_ranks is not None:
        whole = ~rollouts.column("malformed").to_numpy(zero_copy_only=False)
        report[f"{kind}/ndcg@10"] = float(np.mean(ndcg_at(target_ranks, 10) * whole))
    if advantages is not None:
        groups = rollouts.column("task").to_numpy()
        moved = {g for g, each in zip(groups.tolist(), advantages, strict=True) if np.any(each)}
        report[f"{kind}/groups_without_variance"] = 1 - len(moved) / len(np.unique(groups))
    return report


def _mean(rollouts: pa.Table, column: str) -> float:
    return float(pc.mean(rollouts.column(column).cast("float64")).as_py())
