"""A whole GRPO step (sample, reward, reference, update, weights to the sampler) against a peer.

Both sides take the same model, prompts of the same lengths, group size, KL term, optimiser and
number of threads, and step in turns, so that they meet the same machine. All answers of both go on
to their longest. Ours is `STARec.train()` with everything that belongs to it: env runner, reward
actor, learner, RLlib.

TRL runs in an environment of its own, which this makes:

    python -m venv trl && trl/bin/pip install trl==1.16.0 transformers==5.19.0 torch==2.13.0

    starec data prepare synthetic --out runs/demo-data --negatives 7
    python benchmarks/grpo_step.py --peer trl --peer-python trl/bin/python --data runs/demo-data

"defaults" is TRL as it comes (gradient checkpointing, 8 sequences in a forward pass), "tuned"
leaves checkpointing out, "vllm" samples with vLLM in TRL's process; `speedup_over_trl` compares
with the fastest of those that ran, `cpu_speedup_over_trl` the processor's seconds instead of the
clock's, for a machine that does other work beside.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from actors.env_runner import VLLMEnvRunner
from starec_ray.agent.agent import Agent
from starec_ray.agent.tasks import RankTask
from starec_ray.algorithm import STARec
from starec_ray.cluster.connection import start_ray
from starec_ray.config import STARecConfig
from starec_ray.data.dataset import Dataset
from starec_ray.models.resolve import resolve_dtype
from starec_ray.models.tokens import prompt_ids

SETTINGS = {
    "defaults": {"generation": "hf", "gradient_checkpointing": True},
    "tuned": {"generation": "hf", "gradient_checkpointing": False},
    "vllm": {"generation": "vllm", "gradient_checkpointing": False},
}


class ToTheLongest(VLLMEnvRunner):
    """An env runner whose answers don't end by themselves."""

    def _sampling_params(self, **settings: Any) -> Any:
        return super()._sampling_params(**settings, ignore_eos=True)


def our_config(args: argparse.Namespace) -> STARecConfig:
    """One env runner and one learner that share the threads, as the two phases take turns."""
    return (
        STARecConfig()
        .data(path=args.data)
        .model(
            name=args.model,
            dtype=args.dtype,
            think_before_ranking=True,
            history_shown=args.history_shown,
            item_attributes=["popularity", "likeness", "tags"],
            max_model_len=1024,
            max_rank_tokens=args.reply_tokens,
            max_reflect_tokens=args.reply_tokens,
        )
        .anchor(anchor_epochs=0)
        .rewards(reward_shape="ndcg")
        .training(
            lr=args.lr,
            cases_per_iteration=args.prompts,
            group_size=args.group,
            reflect_share=0.0,
            kl_coeff=args.kl_coeff,
        )
        .env_runners(
            env_runner_cls=ToTheLongest,
            num_env_runners=1,
            num_cpus_per_env_runner=args.threads,
            num_gpus_per_env_runner=args.gpus,
            compile_engine=args.compile_engine,
            max_num_seqs=64,
        )
        .learners(
            num_learners=1,
            zero_stage=1,  # one learner has nothing to share out
            num_cpus_per_learner=args.threads,
            num_gpus_per_learner=args.gpus,
            micro_batch_tokens=args.micro_batch_tokens,
        )
        .debugging(seed=args.seed)
        .resolve()
    )


def prompt_texts(config: STARecConfig) -> tuple[list[str], float]:
    """The prompts of training cases as the model reads them, and their mean length in tokens."""
    dataset = Dataset.load(config.data_path)
    agent = Agent.from_config(config, dataset)
    tokenizer = AutoTokenizer.from_pretrained(config.model_path)
    ids = []
    for case_id in dataset.case_ids("train")[:64]:
        task = RankTask(case_id, agent.initial_summary(case_id))
        prompt = agent.prompt(task, lambda messages: len(prompt_ids(tokenizer, messages)))
        ids.append(prompt_ids(tokenizer, prompt.messages))
    return tokenizer.batch_decode(ids), statistics.mean(map(len, ids))


class Ours:
    """Our side of the comparison."""

    def __init__(self, config: STARecConfig) -> None:
        self.algo = config.build_algo()
        assert isinstance(self.algo, STARec)

    def step(self) -> dict[str, float]:
        start, cpu_start = time.perf_counter(), _cpu_seconds()
        self.algo.train()
        seconds, cpu_seconds = time.perf_counter() - start, _cpu_seconds() - cpu_start
        report = self.algo.report
        return {
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            **{k: v for k, v in report.items() if k.startswith("seconds/")},
            "prompt_tokens": report["rank/prompt_tokens"],
            "reply_tokens": report["rank/reply_tokens"],
            "ratio_mean": report["ratio_mean"],
            "logprob_gap": report["logprob_gap"],
        }

    def stop(self) -> None:
        self.algo.stop()


def _cpu_seconds() -> float:
    """Of this process and Ray's, which are its children; peers wait meanwhile."""
    driver = psutil.Process(os.getpid())
    processes = [driver, *driver.children(recursive=True)]
    times = [process.cpu_times() for process in processes]
    return sum(t.user + t.system for t in times)


class Peer:
    """Another trainer in its own environment, which steps when it is asked to."""

    def __init__(self, args: argparse.Namespace, script: Path, settings: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [args.peer_python, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=open(args.peer_log, "a"),  # noqa: SIM115
            text=True,
        )
        self.started = self._exchange(settings)

    def step(self) -> dict[str, Any]:
        return self._exchange("step")

    def stop(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _exchange(self, message: Any) -> dict[str, Any]:
        """One line there and one back; a peer that has ended is an answer with an error."""
        assert self._process.stdin and self._process.stdout
        try:
            print(json.dumps(message), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            return {"error": "the peer has ended"}
        line = self._process.stdout.readline()
        return json.loads(line) if line else {"error": "the peer has ended"}


def medians(steps: list[dict[str, float]]) -> dict[str, float]:
    """Over the steps, the first left out: it warms up."""
    keys = set.intersection(*(set(step) for step in steps))
    found = {key: statistics.median(step[key] for step in steps[1:]) for key in sorted(keys)}
    return found | {"each_step_seconds": [step["seconds"] for step in steps]}


def run(args: argparse.Namespace) -> dict[str, Any]:
    config = our_config(args)
    texts, prompt_tokens = prompt_texts(config)
    script = Path(__file__).parent / "peers" / f"{args.peer}_grpo.py"
    common = {
        "model_path": config.model_path,
        "dtype": config.dtype,
        "device": "cuda" if args.gpus else "cpu",
        "threads": args.threads,
        "prompts": args.prompts,
        "texts": texts,
        "group": args.group,
        "reply_tokens": args.reply_tokens,
        "rows": args.peer_rows,
        "kl_coeff": args.kl_coeff,
        "lr": args.lr,
        "steps": args.steps + 1,
        "seed": args.seed,
    }
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        sides: dict[str, Any] = {"ours": Ours(config)}
        stack.callback(sides["ours"].stop)
        versions = {}
        for name in args.peer_settings:
            peer = Peer(args, script, {**common, **SETTINGS[name], "folder": folder})
            stack.callback(peer.stop)
            if "error" in peer.started:
                failed[name] = peer.started["error"]
                continue
            versions = peer.started["versions"]
            sides[name] = peer
        steps: dict[str, list] = {name: [] for name in sides}
        for _ in range(args.steps + 1):
            for name in [name for name in sides if name not in failed]:
                taken = sides[name].step()
                if "error" in taken:
                    failed[name] = taken["error"]
                    del steps[name]
                else:
                    steps[name].append(taken)
    results = {name: medians(taken) for name, taken in steps.items()}
    peers = {name: each for name, each in results.items() if name != "ours"}
    fastest = min((each["seconds"] for each in peers.values()), default=None)
    least = min((each["cpu_seconds"] for each in peers.values()), default=None)
    return {
        f"speedup_over_{args.peer}": fastest and fastest / results["ours"]["seconds"],
        f"cpu_speedup_over_{args.peer}": least and least / results["ours"]["cpu_seconds"],
        "ours": results["ours"],
        args.peer: peers,
        "failed": failed,
        "peer_versions": versions,
        "mean_prompt_tokens": prompt_tokens,
        "settings": {
            k: str(v) for k, v in vars(args).items() if k not in ("json", "peer_python", "peer_log")
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", choices=["trl"], default="trl")
    parser.add_argument("--peer-python", required=True, help="Python of the peer's environment")
    parser.add_argument(
        "--peer-settings", nargs="+", choices=list(SETTINGS), default=["defaults", "tuned"]
    )
    parser.add_argument("--peer-rows", type=int, default=8, help="sequences in a forward pass")
    parser.add_argument("--peer-log", default="/dev/null", help="where the peer's stderr goes")
    parser.add_argument("--data", type=Path, required=True, help="a prepared data folder")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16"],
        default="auto",
        help="auto: bfloat16 where the hardware is fast at it, else float32",
    )
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--history-shown", type=int, default=6, help="sets the prompts' length")
    parser.add_argument("--reply-tokens", type=int, default=64)
    parser.add_argument("--micro-batch-tokens", type=int, default=4096)
    parser.add_argument(
        "--compile-engine", action="store_true", help="env_runners.compile_engine, for ours"
    )
    parser.add_argument("--kl-coeff", type=float, default=0.05)
    parser.add_argument("--lr", type=float, default=1e-6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--gpus", type=float, default=0)
    parser.add_argument("--steps", type=int, default=2, help="after one that warms up")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    args = parser.parse_args()
    args.dtype = resolve_dtype(args.dtype, on_gpu=args.gpus > 0)

    start_ray({"num_cpus": 8})
    result = run(args)
    if args.json:
        print(json.dumps(result))
        return
    table = Table(title=f"one GRPO step: {args.prompts} prompts × {args.group} answers")
    for column in ("side", "seconds", "answer tokens", "speedup of ours"):
        table.add_column(column, justify="right")
    for name, each in {"ours": result["ours"], **result[args.peer]}.items():
        table.add_row(
            name if name == "ours" else f"{args.peer}, {name}",
            f"{each['seconds']:.1f}",
            f"{each['reply_tokens']:.1f}",
            f"{each['seconds'] / result['ours']['seconds']:.1f}",
        )
    Console().print(table)
    for name, error in result["failed"].items():
        Console().print(f"{args.peer}, {name}, failed: {error}")


if __name__ == "__main__":
    main()
