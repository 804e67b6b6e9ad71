"""Rollouts: the env runner against a bare vLLM call with the same prompts and sampling.

Both use one engine in this process, in turns, with the prefix cache emptied before each. The
runner's time holds all that it does: prompts, token ids, sampling, reading the replies, the table.

    python benchmarks/rollout.py --data runs/demo-data --json
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from actors.engine import REPLY_FORM
from actors.env_runner import VLLMEnvRunner
from starec_ray.agent.tasks import RankTask
from starec_ray.config import STARecConfig
from starec_ray.models.tokens import prompt_ids


def measure(
    args: argparse.Namespace, runner: VLLMEnvRunner, group: int, constrained: bool
) -> dict[str, Any]:
    """Tokens per second of both at one group size, medians over the repeats."""
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    runner.agent.constrained = constrained
    case_ids = runner.agent.dataset.case_ids("train")[: args.prompts]
    tasks = [RankTask(case_id, runner.agent.initial_summary(case_id)) for case_id in case_ids]
    prompts = [runner.agent.prompt(task, runner._count_tokens) for task in tasks]
    ids = [prompt_ids(runner.tokenizer, prompt.messages) for prompt in prompts]
    forms = [runner.agent.reply_form(task, runner.tokenizer) for task in tasks]
    params = [
        SamplingParams(
            n=group,
            temperature=1.0,
            max_tokens=runner.config.max_rank_tokens,
            logprobs=0,
            extra_args={REPLY_FORM: form.plain()} if form else None,
        )
        for form in forms
    ]

    def bare() -> int:
        runner.llm.collective_rpc("seed_sampling", args=(0,))  # else its answers are others
        requests = [TokensPrompt(prompt_token_ids=each) for each in ids]
        answers = runner.llm.generate(requests, params, use_tqdm=False)
        return sum(len(out.token_ids) for answer in answers for out in answer.outputs)

    def ours() -> int:
        table = runner.sample(tasks, rollouts=group, temperature=1.0, seed=0, weight_version=0)
        return sum(map(len, table["reply_ids"].to_pylist()))

    speeds: dict[str, list[float]] = {"bare": [], "runner": []}
    sampled: dict[str, int] = {}
    for repeat in range(args.repeats + 1):
        for name, sample in (("bare", bare), ("runner", ours)):
            runner.llm.reset_prefix_cache()
            start = time.perf_counter()
            sampled[name] = sample()
            if repeat:  # the first warms up
                speeds[name].append(sampled[name] / (time.perf_counter() - start))
    assert sampled["bare"] == sampled["runner"], sampled
    medians = {f"{name}_tokens_per_second": statistics.median(s) for name, s in speeds.items()}
    return {
        "group": group,
        "constrained": constrained,
        "prompt_tokens": statistics.mean(map(len, ids)),
        "reply_tokens": sampled["runner"],
        **medians,
        "efficiency": medians["runner_tokens_per_second"] / medians["bare_tokens_per_second"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="a prepared data folder")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--groups", nargs="+", type=int, default=[1, 4, 8, 16])
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="after one that warms up")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    args = parser.parse_args()

    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # stdout is for the result
    config = (
        STARecConfig()
        .data(path=args.data)
        .model(
            name=args.model,
            reply_format="grades",
            think_before_ranking=False,
            constrained_decoding=True,  # the engine can; each measurement says whether it does
            max_model_len=2048,
            max_rank_tokens=128,
        )
        .env_runners(num_cpus_per_env_runner=args.threads, max_num_seqs=128)
        .resolve()
    )
    runner = VLLMEnvRunner(config=config)
    runner.load_model(config.model_path, version=0)
    runs = [
        measure(args, runner, group, constrained)
        for constrained in (False, True)
        for group in args.groups
    ]
    runner.stop()
    if args.json:
        found = [run["efficiency"] for run in runs]
        efficiency = {"efficiency": statistics.median(found), "least_efficiency": min(found)}
        print(json.dumps({"model": args.model, **efficiency, "runs": runs}))
        return
    table = Table(title=f"{args.model}, {args.prompts} prompts")
    for column in ("decoding", "group", "bare tokens/s", "env runner tokens/s", "efficiency"):
        table.add_column(column, justify="right")
    for run in runs:
        table.add_row(
            "constrained" if run["constrained"] else "free",
            str(run["group"]),
            f"{run['bare_tokens_per_second']:.0f}",
            f"{run['runner_tokens_per_second']:.0f}",
            f"{run['efficiency']:.3f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
