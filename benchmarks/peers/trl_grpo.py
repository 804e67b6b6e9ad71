"""One GRPO step of TRL at a time, for `benchmarks/grpo_step.py`: runs in TRL's environment.

The first line of stdin holds the settings; each further line asks for one step, and is answered by
a JSON line on stdout. Imports nothing of this project.
"""

import json
import os
import resource
import sys
import time

# What libraries print goes to stderr: stdout is for the answers.
ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


def answer(**what) -> None:
    print(json.dumps(what), file=ANSWERS, flush=True)


def main() -> None:
    settings = json.loads(sys.stdin.readline())
    os.environ["OMP_NUM_THREADS"] = str(settings["threads"])
    if settings["generation"] == "vllm" and settings["device"] == "cpu":
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    import torch
    import transformers
    import trl
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback

    torch.set_num_threads(settings["threads"])

    class InTurn(TrainerCallback):
        """Waits for its turn before each step, and tells what the step took."""

        def __init__(self) -> None:
            self.begun = self.cpu_begun = 0.0

        def on_step_begin(self, args, state, control, **kwargs) -> None:
            if not sys.stdin.readline():
                sys.exit(0)
            self.begun, self.cpu_begun = time.perf_counter(), time.process_time()

        def on_step_end(self, args, state, control, **kwargs) -> None:
            control.should_log = True
            self.seconds = time.perf_counter() - self.begun
            self.cpu_seconds = time.process_time() - self.cpu_begun

        def on_log(self, args, state, control, logs=None, **kwargs) -> None:
            if "completions/mean_length" not in (logs or {}):
                return
            tokens = logs["num_tokens"]
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            answer(
                seconds=self.seconds,
                cpu_seconds=self.cpu_seconds,
                reply_tokens=logs["completions/mean_length"],
                tokens_seen=tokens,
                peak_gib=peak,
            )

    def reward(completions, **kwargs) -> list[float]:
        """Cheap, and different within a group."""
        return [len(set(text)) / 100 for text in completions]

    group, reply = settings["group"], settings["reply_tokens"]
    vllm = settings["generation"] == "vllm"
    config = trl.GRPOConfig(
        output_dir=settings["folder"],
        per_device_train_batch_size=settings["rows"],
        gradient_accumulation_steps=settings["prompts"] * group // settings["rows"],
        num_generations=group,
        max_completion_length=reply,
        max_steps=settings["steps"],
        temperature=1.0,
        beta=settings["kl_coeff"],
        learning_rate=settings["lr"],
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        bf16=settings["dtype"] == "bfloat16",
        use_cpu=settings["device"] == "cpu",
        gradient_checkpointing=settings["gradient_checkpointing"],
        model_init_kwargs={"dtype": settings["dtype"], "attn_implementation": "sdpa"},
        # Every answer to its full length, as a bound for both.
        generation_kwargs={"ignore_eos": True} if vllm else {"min_new_tokens": reply},
        use_vllm=vllm,
        **({"vllm_mode": "colocate", "vllm_max_model_length": 1024} if vllm else {}),
        seed=settings["seed"],
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = trl.GRPOTrainer(
        model=settings["model_path"],
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": settings["texts"]}),
        processing_class=AutoTokenizer.from_pretrained(settings["model_path"]),
        callbacks=[InTurn()],
    )
    versions = {m.__name__: m.__version__ for m in (trl, torch, transformers)}
    answer(ready=True, versions=versions)
    trainer.train()


if __name__ == "__main__":
    try:
        main()
    except Exception as error:
        answer(error=f"{type(error).__name__}: {error}"[:2000])
        raise
