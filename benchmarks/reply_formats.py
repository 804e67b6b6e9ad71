"""Compares reply formats: the same model, cases and traces, free and constrained decoding.

Each variant is anchored on as many traces and then ranks the same validation users, greedily.

    python benchmarks/reply_formats.py --data runs/demo-data --json
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from starec_ray.agent.formats import FORMATS
from starec_ray.algorithm import STARec
from starec_ray.cluster.connection import start_ray
from starec_ray.config import STARecConfig


def measure(args: argparse.Namespace, reply_format: str, constrained: bool) -> dict[str, Any]:
    """Untrained and anchored figures of one variant."""
    config = (
        STARecConfig()
        .data(path=args.data)
        .model(
            name=args.model,
            reply_format=reply_format,
            constrained_decoding=constrained,
            think_before_ranking=False,
            item_attributes=["popularity", "tags", "year"],
            history_shown=4,
            max_model_len=1536,
            max_rank_tokens=args.max_rank_tokens,
        )
        .anchor(
            num_traces=args.traces,
            reflect_trace_share=0.0,
            anchor_batch_size=4,
            anchor_lr=args.anchor_lr,
        )
        .env_runners(num_env_runners=1, num_cpus_per_env_runner=2)
        .learners(num_learners=1, num_cpus_per_learner=2, micro_batch_tokens=1024)
        .training(kl_coeff=0.0)
        .debugging(seed=args.seed)
        .resolve()
    )
    algo = config.build_algo()
    assert isinstance(algo, STARec)
    try:
        untrained = evaluate(algo, args.cases)
        start = time.perf_counter()
        while algo.stage == "anchor":
            algo.train()
        anchor_seconds = time.perf_counter() - start
        return {
            "reply_format": reply_format,
            "constrained": constrained,
            "untrained": untrained,
            "anchored": evaluate(algo, args.cases),
            "anchor_nll": algo.report["loss"],
            "anchor_seconds": anchor_seconds,
        }
    finally:
        algo.stop()


def evaluate(algo: STARec, cases: int) -> dict[str, float]:
    """NDCG@10 and the malformed rate on validation users, and how long that took."""
    start = time.perf_counter()
    figures = algo.evaluate(limit=cases)["validation"]
    kept = {name: figures[name] for name in ("ndcg@1", "ndcg@10", "malformed_rate")}
    return kept | {"seconds": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a prepared data folder")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--traces", type=int, default=48)
    parser.add_argument("--cases", type=int, default=48, help="validation users")
    parser.add_argument("--anchor-lr", type=float, default=5e-4)
    parser.add_argument("--max-rank-tokens", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object alone")
    args = parser.parse_args()
    start_ray({"num_cpus": 6})
    variants = []
    for reply_format in FORMATS:
        for constrained in (True, False):
            variants.append(measure(args, reply_format, constrained))
            if not args.json:
                print(variants[-1])
    if args.json:
        settings = {key: str(value) for key, value in vars(args).items() if key != "json"}
        print(json.dumps({"settings": settings, "variants": variants}))


if __name__ == "__main__":
    main()
