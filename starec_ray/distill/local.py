"""A teacher in vLLM on the Ray cluster, through Ray Data's LLM processor."""

from collections.abc import Iterator, Sequence
from typing import Any

import ray

from starec_ray.agent.agent import split_rationale
from starec_ray.cluster.connection import check_resources
from starec_ray.distill.settings import LocalSettings
from starec_ray.distill.teachers import CUT_OFF, Answer, Question, Record, Usage
from starec_ray.heartbeat import HeartbeatDeadline
from starec_ray.models.resolve import (
    check_chat_template,
    load_tokenizer,
    resolve_dtype,
    resolve_model,
)
from starec_ray.models.tokens import prompt_ids

Row = dict[str, Any]
CPU_KV_CACHE_GIB = 2
TOO_LONG = "prompt too long"
SILENCE_S = 3600.0  # engines that start from a slow disk, and a batch of long thoughts
SILENCE_REMEDY = (
    "`ray status` tells whether they have a place, STAREC_ACTOR_LOGS=1 shows what they print; what "
    "was answered is kept."
)


def in_time(answers: Iterator[Row], limit_s: float, who: str) -> Iterator[Row]:
    """The answers as they come.

    Raises:
        DeadlineError: if none comes for `limit_s` seconds.
    """
    next_of = HeartbeatDeadline(limit_s, SILENCE_REMEDY)
    while (answer := next_of(who, lambda heartbeat: next(answers, None))) is not None:
        yield answer


class LocalTeacher:
    """Answers with a model of one's own on all engines at once; each answer is recorded when it
    comes. A lost engine is started again and its requests are asked again by Ray Data.

    Raises (from the constructor):
        ConfigError: if the model can't be found, has no chat template, or the cluster lacks what
            the engines need.
    """

    def __init__(self, settings: LocalSettings) -> None:
        from transformers import AutoConfig

        self.settings = settings
        self._gpus = settings.gpus_per_engine
        if self._gpus is None:
            self._gpus = 1 if ray.cluster_resources().get("GPU") else 0
        kind, each = ("GPU", self._gpus) if self._gpus else ("CPU", settings.cpus_per_engine)
        remedy = f"lower --engines or --{kind.lower()}s-per-engine, or join a larger cluster."
        check_resources([{kind: each}] * settings.engines, remedy)
        self.name = settings.model
        self.usage = Usage()
        self._path = resolve_model(settings.model)
        check_chat_template(self._path)
        self._tokenizer = load_tokenizer(self._path)
        window = getattr(AutoConfig.from_pretrained(self._path), "max_position_embeddings", None)
        self._window = settings.engine_settings.get("max_model_len") or window

    @property
    def how(self) -> dict[str, Any]:
        settings = self.settings
        return {
            "temperature": settings.temperature,
            "max_tokens": settings.max_tokens,  # answers that were cut off are kept too
            "engine_settings": settings.engine_settings,
        }

    def answer(self, questions: Sequence[Question], record: Record) -> None:
        rows = [self._row(number, question) for number, question in enumerate(questions)]
        fitting = [row for row in rows if self._fits(row)]
        self.usage.requests += len(rows)
        self.usage.faults[TOO_LONG] += len(rows) - len(fitting)
        self.usage.faults = +self.usage.faults  # no zeros
        answers = self._answers(fitting) if fitting else iter(())
        for row in in_time(answers, SILENCE_S, f"engines of {self.name}"):
            if error := row.get("__inference_error__"):
                self.usage.faults[str(error).splitlines()[0][:80]] += 1
                continue
            reasoning, text = split_rationale(row["generated_text"])
            read, written = int(row["num_input_tokens"]), int(row["num_generated_tokens"])
            if not text.strip():
                cut_off = written >= self.settings.max_tokens
                self.usage.faults[CUT_OFF if cut_off else "empty answer"] += 1
                continue
            self.usage.answers += 1
            self.usage.tokens += read + written
            record(questions[row["number"]], Answer(text, reasoning, read, written))

    def _row(self, number: int, question: Question) -> dict[str, Any]:
        sampling: dict[str, Any] = {
            "temperature": self.settings.temperature,
            "max_tokens": self.settings.max_tokens,
            "seed": question.seed,
        }
        if question.grammar:
            sampling["structured_outputs"] = {"grammar": question.grammar}
        return {
            "number": number,
            "tokenized_prompt": prompt_ids(self._tokenizer, question.messages),
            "sampling_params": sampling,
        }

    def _fits(self, row: dict[str, Any]) -> bool:
        return not self._window or len(row["tokenized_prompt"]) < self._window

    def _answers(self, rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The rows with what was generated, in the order in which they are done."""
        from ray.data import DataContext
        from ray.data.llm import build_processor, vLLMEngineProcessorConfig

        settings, on_gpu = self.settings, bool(self._gpus)
        context = DataContext.get_current()
        context.enable_progress_bars = False  # the questions have one of their own
        context.execution_options.preserve_order = False
        processor = build_processor(
            vLLMEngineProcessorConfig(
                model_source=self._path,
                engine_kwargs=self._engine_settings(on_gpu),
                concurrency=(settings.engines, settings.engines),
                batch_size=settings.batch_size,
                should_continue_on_error=True,
                log_engine_metrics=False,
                placement_group_config=None
                if on_gpu
                else {"bundles": [{"CPU": settings.cpus_per_engine}]},
                runtime_env={"env_vars": self._environment(on_gpu)},
                # Prompts come as token ids, answers as text.
                chat_template_stage=False,
                tokenize_stage=False,
                detokenize_stage=False,
                prepare_multimodal_stage=False,
            )
        )
        blocks = max(settings.engines, -(-len(rows) // settings.batch_size))
        yield from processor(
            ray.data.from_items(list(rows), override_num_blocks=blocks)
        ).iter_rows()

    def _engine_settings(self, on_gpu: bool) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "dtype": resolve_dtype("auto", on_gpu),
            "enable_prefix_caching": True,
        }
        if on_gpu:
            settings["tensor_parallel_size"] = self._gpus
        else:
            settings |= {"enforce_eager": True, "block_size": 32}
        return settings | self.settings.engine_settings

    def _environment(self, on_gpu: bool) -> dict[str, str]:
        shared = {"VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false"}
        if on_gpu:
            return shared
        return shared | {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": str(CPU_KV_CACHE_GIB),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(self.settings.cpus_per_engine),
        }
