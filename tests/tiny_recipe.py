"""A recipe of the whole of it: two env runners, two learners, on two cores in seconds."""

from pathlib import Path

from starec_ray.config.recipe import Recipe, build


def tiny_recipe(data: Path, model_path: Path, traces: Path | None, **changes: dict) -> Recipe:
    """`changes` are keys of sections; without `traces` the template teacher writes them."""
    sections = {
        "data": {"path": str(data)},
        "model": {
            "name": str(model_path),
            "dtype": "float32",
            "max_model_len": 512,
            "max_rank_tokens": 24,
            "max_reflect_tokens": 24,
            "think_before_ranking": False,
            "item_attributes": [],
        },
        "anchor": {
            "traces": [str(traces)] if traces else [],
            "num_traces": 192,
            "anchor_epochs": 8,
            "anchor_batch_size": 16,
            "anchor_lr": 5e-3,
            "anchor_updates_per_iteration": 12,
        },
        "rewards": {"reward_shape": "ndcg", "num_reward_actors": 2},
        "training": {
            "lr": 2e-3,
            "cases_per_iteration": 8,
            "group_size": 16,
            "reflect_share": 0.125,
        },
        "env_runners": {
            "num_env_runners": 2,
            "num_cpus_per_env_runner": 1,
            "max_num_seqs": 64,
            "kv_cache_gib": 0.1,
        },
        "learners": {"num_learners": 2, "num_cpus_per_learner": 1, "micro_batch_tokens": 4096},
        "run": {"iterations": 24, "checkpoint_every": 24, "evaluate_slow_thinking": True},
    }
    for section, keys in changes.items():
        sections[section] |= keys
    return build(sections)
