"""Tables for the learner: traces and scored rollouts → token sequences (`schemas.SEQUENCES`)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from starec_ray.agent.agent import Agent
from starec_ray.agent.formats import grades_of
from starec_ray.agent.tasks import RankTask, ReflectTask, SummarizeTask, Task
from starec_ray.data.dataset import Item
from starec_ray.errors import ConfigError
from starec_ray.models.tokens import count_tokens, prompt_ids
from starec_ray.schemas import SEQUENCES


def from_traces(
    traces: pa.Table, agent: Agent, tokenizer: Any, weights: Mapping[str, float] | None = None
) -> pa.Table:
    """Traces (`schemas.TRACES`) as the prompts that the agent writes and the replies to learn.

    `weights` are those of the kinds of trace in the loss, 1 where one isn't named.

    Returns:
        `schemas.SEQUENCES`, a row a trace, in their order; component "anchor", each a group.
    """
    rows: dict[str, list] = {name: [] for name in SEQUENCES.names}
    for number, trace in enumerate(traces.to_pylist()):
        prompt = agent.prompt(_task(trace), lambda m: count_tokens(tokenizer, m))
        form = agent.reply_form(_task(trace), tokenizer)
        if form:
            reply = form.write(_filled(trace, agent))
        else:
            text = tokenizer.encode(_reply(trace, agent), add_special_tokens=False)
            reply = [*text, tokenizer.eos_token_id]
        rows["component"].append("anchor")
        rows["group"].append(number)
        rows["prompt_ids"].append(prompt_ids(tokenizer, prompt.messages))
        rows["reply_ids"].append(reply)
        rows["choices"].append(form.choices(reply) if form else None)
        rows["logprobs"].append(None)
        rows["advantages"].append([(weights or {}).get(trace["kind"], 1.0)] * len(reply))
    return pa.table(rows, schema=SEQUENCES)


def from_rollouts(component: str, rollouts: pa.Table, advantages: Sequence[np.ndarray]) -> pa.Table:
    """Rollouts (`schemas.ROLLOUTS`) as sequences; a group a task.

    Args:
        advantages: of each rollout float32 [1], for all its tokens, or one for each token that
            it chose among others, see `starec_ray.credit`.

    Raises:
        ConfigError: if a grade isn't one token, so that it can't have one advantage.
    """
    return pa.table(
        {
            "component": pa.array([component] * len(rollouts), pa.string()),
            "group": rollouts.column("task").cast(pa.int64()),
            "prompt_ids": rollouts.column("prompt_ids"),
            "reply_ids": rollouts.column("reply_ids"),
            "logprobs": rollouts.column("logprobs"),
            "choices": rollouts.column("choices"),
            "advantages": [
                _by_token(given, choices, length)
                for given, choices, length in zip(
                    advantages,
                    rollouts.column("choices").to_pylist(),
                    pc.list_value_length(rollouts.column("reply_ids")).to_pylist(),
                    strict=True,
                )
            ],
        },
        schema=SEQUENCES,
    )


def _by_token(advantages: np.ndarray, choices: list[list[int]] | None, length: int) -> np.ndarray:
    if len(advantages) == 1:
        return np.full(length, advantages[0], np.float32)
    chosen = [place for place, tokens in enumerate(choices or ()) if len(tokens) > 1]
    if len(chosen) != len(advantages):
        raise ConfigError(
            f"a reply chose {len(chosen)} tokens and has {len(advantages)} graded candidates: "
            "this model's tokenizer has no token for a grade; set credit_assignment to reply."
        )
    by_token = np.zeros(length, np.float32)
    by_token[chosen] = advantages
    return by_token


def _task(trace: dict[str, Any]) -> Task:
    if trace["kind"] == "rank":
        return RankTask(trace["case_id"], trace["summary_before"])
    if trace["kind"] == "summarize":
        return SummarizeTask(trace["case_id"])
    return ReflectTask(
        trace["case_id"], trace["summary_before"], tuple(trace["predicted"]), trace["chosen"]
    )


def _reply(trace: dict[str, Any], agent: Agent) -> str:
    if trace["kind"] != "rank":
        return f"<think>{trace['rationale']}</think>\n{trace['summary']}"
    candidates = agent.dataset.case(trace["case_id"]).candidates
    answer = agent.writer.reply_format.write(candidates, *_order_and_grades(trace, candidates))
    if agent.writer.think_before_ranking:
        return f"<think>{trace['rationale']}</think>\n{answer}"
    return answer


def _filled(trace: dict[str, Any], agent: Agent) -> list[int]:
    candidates = agent.dataset.case(trace["case_id"]).candidates
    return agent.writer.reply_format.fill(*_order_and_grades(trace, candidates))


def _order_and_grades(
    trace: dict[str, Any], candidates: Sequence[Item]
) -> tuple[list[int], list[int]]:
    place = {item.item_id: index for index, item in enumerate(candidates)}
    order = [place[item_id] for item_id in trace["ranking"]]
    return order, trace["grades"] or grades_of(order)
