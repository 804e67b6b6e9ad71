"""The vLLM env runner: samples what an agent answers to its tasks."""

import os
import time
from collections.abc import Sequence
from typing import Any

import psutil
import pyarrow as pa
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.utils.actor_manager import FaultAwareApply

from actors.engine import (
    REPLY_FORM,
    generate,
    load_saved_model,
    load_ticket,
    sleep,
    start_engine,
)
from actors.weight_transfer.base import Ticket
from starec_ray.agent.agent import Agent, Prompt
from starec_ray.agent.formats import GRADES
from starec_ray.agent.reply_form import ReplyForm
from starec_ray.agent.tasks import RankTask, Task
from starec_ray.data.dataset import Dataset
from starec_ray.errors import ConfigError, StaleWeightsError
from starec_ray.models.tokens import count_tokens, prompt_ids
from starec_ray.schemas import ROLLOUTS


class VLLMEnvRunner(EnvRunner, FaultAwareApply):
    """A vLLM engine in RLlib's EnvRunnerGroup; the users' agents are its environment.

    It reads the prompts' side of the data folder alone. What a user really chose reaches its
    prompts only inside a `ReflectTask`, which is made after the ranking was scored; what was
    chosen in a round before it is a part of the history then.
    """

    config: Any  # an AlgorithmConfig with this system's fields

    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        """Starts the engine, in this process, by the settings of `config` (`STARecConfig`)."""
        super().__init__(config=config, **kwargs)
        self.worker_index = kwargs.get("worker_index", 0)
        self.agent = Agent.from_config(config, Dataset.load(config.data_path))
        self.llm = start_engine(config)
        self.tokenizer = self.llm.get_tokenizer()
        # vLLM's seeded requests fail on a CPU when a long prompt is computed in chunks; there
        # the engine draws from its workers' generators, which are seeded instead.
        self._seeds_each_request = config.num_gpus_per_env_runner > 0
        # What the engine started with has no version: nothing is sampled before weights come.
        self.weight_version: int | None = None

    def sample(  # type: ignore[override]
        self,
        tasks: Sequence[Task],
        *,
        rollouts: int,
        temperature: float,
        seed: int,
        weight_version: int,
        numbers: Sequence[int] | None = None,
    ) -> pa.Table:
        """Rollouts of all tasks in one request to the engine, by task then rollout.

        Args:
            tasks: rankings or reflections.
            rollouts: answers to each prompt, whose prefix is computed once.
            temperature: 0 is greedy, and ranks by expected grades where candidates are graded;
                above it no top-p and no top-k cut the distribution.
            seed: the same tasks, weights, seed and numbers give the same answers.
            weight_version: the version that the engine must hold.
            numbers: each task's number among all that are asked for with this seed, here or on
                other runners; no two draw alike. By default these are all. (On CPUs the engine
                draws for all of them from one generator, seeded by the first.)

        Returns:
            `schemas.ROLLOUTS`.

        Raises:
            StaleWeightsError: if the engine holds another version.
            ConfigError: if a prompt can't fit the window.
        """
        from vllm.inputs import TokensPrompt

        if weight_version != self.weight_version:
            raise StaleWeightsError(
                f"env runner {self.worker_index} holds weights of version {self.weight_version}, "
                f"version {weight_version} was asked for."
            )
        if temperature == 0 and rollouts != 1:
            raise ConfigError("greedy answers are all the same: ask for 1 rollout, not more.")
        numbers = range(len(tasks)) if numbers is None else numbers
        prompts = [self.agent.prompt(task, self._count_tokens) for task in tasks]
        token_ids = [prompt_ids(self.tokenizer, prompt.messages) for prompt in prompts]
        forms = [self.agent.reply_form(task, self.tokenizer) for task in tasks]
        longest = max((form.longest for form in forms if form), default=0)
        if longest > self.config.max_rank_tokens:
            raise ConfigError(
                f"max_rank_tokens is {self.config.max_rank_tokens}, but a whole ranking takes up "
                f"to {longest} tokens here: raise it."
            )
        expecting = temperature == 0 and self.agent.grades_candidates
        self.llm.collective_rpc("seed_sampling", args=(seed + next(iter(numbers), 0),))
        answers = generate(
            self.llm,
            [TokensPrompt(prompt_token_ids=ids) for ids in token_ids],
            [
                self._sampling_params(
                    max_tokens=self._max_tokens(task),
                    n=rollouts,
                    temperature=temperature,
                    # vLLM adds the rollout's number: no two rollouts draw alike.
                    seed=(seed + number) * rollouts if self._seeds_each_request else None,
                    # The sampled token's alone, or those of all grades.
                    logprobs=len(GRADES) if expecting else 0,
                    extra_args={REPLY_FORM: form.plain()} if form else None,
                )
                for number, task, form in zip(numbers, tasks, forms, strict=True)
            ],
        )
        rows = [
            self._row(number, task, prompt, ids, form, rollout, answer, expecting)
            for number, (task, prompt, ids, form, request) in enumerate(
                zip(tasks, prompts, token_ids, forms, answers, strict=True)
            )
            for rollout, answer in enumerate(request.outputs)
        ]
        return pa.Table.from_pylist(rows, schema=ROLLOUTS)

    def load_weights(self, ticket: Ticket) -> dict[str, float]:
        """Loads a published version; returns seconds by part."""
        self.weight_version = None  # unknown until all of it is there
        seconds = load_ticket(self.llm, ticket)
        self.weight_version = ticket.version
        return seconds

    def load_model(self, folder: str, version: int) -> dict[str, float]:
        """Loads a saved model of the same architecture (a folder, or a Hugging Face id)."""
        start = time.perf_counter()
        self.weight_version = None
        load_saved_model(self.llm, folder)
        self.weight_version = version
        return {"load": time.perf_counter() - start}

    def sleep(self) -> None:
        """Frees the GPU's memory until weights are loaded; there is nothing to sample with then."""
        self.weight_version = None
        sleep(self.llm)

    def transfer_group(self) -> str | None:
        """The identity of the group in which its workers receive broadcast weights."""
        return self.llm.collective_rpc("transfer_group")[0]

    def memory(self) -> dict[str, int]:
        """Resident bytes of this process, engine included."""
        return {"rss_bytes": psutil.Process(os.getpid()).memory_info().rss}

    def _count_tokens(self, messages: list[dict[str, str]]) -> int:
        return count_tokens(self.tokenizer, messages)

    def _sampling_params(self, **settings: Any) -> Any:
        """vLLM's settings of one request."""
        from vllm import SamplingParams

        return SamplingParams(**settings)

    def _max_tokens(self, task: Task) -> int:
        if isinstance(task, RankTask):
            return self.config.max_rank_tokens
        return self.config.max_reflect_tokens

    def _row(
        self,
        number: int,
        task: Task,
        prompt: Prompt,
        ids: list[int],
        form: ReplyForm | None,
        rollout: int,
        answer: Any,
        expecting: bool,
    ) -> dict[str, Any]:
        reply_ids = list(answer.token_ids)
        expected_grades: list[float] = []
        if form and expecting:
            steps = [{token: p.logprob for token, p in step.items()} for step in answer.logprobs]
            expected_grades = form.expected_options(reply_ids, steps)
        reply = self.tokenizer.decode(reply_ids, skip_special_tokens=True)
        return {
            "kind": "rank" if isinstance(task, RankTask) else "reflect",
            "case_id": task.case_id,
            "task": number,
            "rollout": rollout,
            "prompt": "\n\n".join(message["content"] for message in prompt.messages),
            "reply": reply,
            **self.agent.read(task, reply, expected_grades),
            "history_shed": prompt.history_shed,
            "summary_cut": prompt.summary_cut,
            "finish_reason": answer.finish_reason,
            "weight_version": self.weight_version,
            "prompt_ids": ids,
            "reply_ids": reply_ids,
            "logprobs": [
                step[token].logprob for token, step in zip(reply_ids, answer.logprobs, strict=True)
            ],
            "choices": form.choices(reply_ids) if form else None,
        }

    # --- RLlib's duties ----------------------------------------------------------------------

    def assert_healthy(self) -> None:
        """Raises if there is no engine."""
        assert self.llm is not None

    def get_spaces(self) -> dict[str, Any]:
        """Text in, text out: RLlib asks for spaces before it makes learners."""
        spaces = (self.config.observation_space, self.config.action_space)
        return {"__env__": spaces, "default_policy": spaces}

    def get_metrics(self) -> dict[str, Any]:
        """None of its own: what is to be said of rollouts stands in their table."""
        return {}

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """No state: weights come by version, and memories with the tasks."""
        return {}

    def set_state(self, state: Any) -> None:
        """Nothing to set, see `get_state`."""

    def stop(self) -> None:
        """Lets go of the engine."""
        self.llm = None
