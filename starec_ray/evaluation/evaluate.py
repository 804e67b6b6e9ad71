"""Run policies over held-out cases: without a model, by fast thinking, by slow thinking."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import pyarrow as pa

from starec_ray.agent.tasks import RankTask, ReflectTask, Task
from starec_ray.data.dataset import Case, Dataset
from starec_ray.errors import ConfigError, DataError, STARecError
from starec_ray.evaluation.policies import popularity_ranking, random_ranking
from starec_ray.evaluation.results import SLOW, PolicyResult
from starec_ray.progress import phase

SAMPLE_SEED = 0
RANKINGS = pa.schema(
    [
        pa.field("case_id", pa.string(), nullable=False),
        pa.field("ranking", pa.list_(pa.string()), nullable=False),  # item ids, best first
        pa.field("malformed", pa.bool_(), nullable=False),
        pa.field("history_shed", pa.int16(), nullable=False),  # items dropped to fit the window
    ]
)


class Sampler(Protocol):
    """The model at work: answers tasks."""

    def sample(
        self, tasks: list[Task], *, rollouts: int, temperature: float, seed: int
    ) -> pa.Table:
        """A ROLLOUTS table, rows ordered by task then rollout."""


class ModelSampler(Sampler, Protocol):
    """A sampler that can change models."""

    def load_model(self, folder: str) -> None:
        """Answer with the weights in this folder from now on."""


class Scorer(Protocol):
    """Keeper of the held-out targets (the reward actors)."""

    def score(self, rankings: pa.Table) -> pa.Table:
        """RANKINGS → SCORES, a row each, in the order asked."""


class Mind(Protocol):
    """What evaluation asks of the agent."""

    def initial_summary(self, case_id: str) -> str:
        """The preference summary before any reflection."""


def evaluation_case_ids(
    dataset: Dataset, split: str = "test", limit: int | None = None
) -> list[str]:
    """The leave-one-out case of every user of a split, or a random sample of `limit` of them.

    That is each user's last round; earlier rounds only feed slow thinking. A sample is the same
    every time, whatever the seed of a run, so that runs are compared on the same users.

    Raises:
        DataError: if the split has no cases.
    """
    last = [case_id for case_id in dataset.case_ids(split) if not dataset.next_case_id(case_id)]
    if not last:
        raise DataError(f"the data folder has no cases of the split {split!r} to evaluate on.")
    if limit is None or limit >= len(last):
        return last
    chosen = np.random.default_rng(SAMPLE_SEED).choice(len(last), size=limit, replace=False)
    return [last[index] for index in sorted(chosen)]


def check_cases(dataset: Dataset, split: str, limit: int, *, slow_thinking: bool) -> None:
    """Raises what an evaluation of so many cases (0: all) would stop at.

    Raises:
        DataError: if the split has no cases.
        ConfigError: slow thinking without an earlier round of some user.
    """
    case_ids = evaluation_case_ids(dataset, split, limit or None)
    if slow_thinking:
        earlier_cases(dataset, case_ids)


def evaluate_all(
    sampler: ModelSampler,
    agent: Mind,
    dataset: Dataset,
    scorer: Scorer,
    case_ids: Sequence[str],
    models: Mapping[str, str],
    *,
    slow_thinking: bool = True,
    batch_size: int = 64,
    seed: int = 0,
) -> list[PolicyResult]:
    """Random order, popularity, then each model without and with slow thinking.

    Args:
        sampler: samples with one model at a time, the one that was loaded last.
        agent: gives the summaries that memories begin with.
        scorer: keeps the targets of `case_ids`, the same ones for every policy.
        models: policy name (untrained, anchored, reinforced) to the folder of its weights.
        slow_thinking: evaluate the "+slow" variants too.
        batch_size: tasks sent to the sampler at once.
        seed: of the random order; the models' rankings are greedy.

    Raises:
        ConfigError: slow thinking without an earlier round of some user.
        STARecError: if the sampler or the scorer leaves out cases.
    """
    results = [
        evaluate_rankings("random", dataset, scorer, case_ids, random_ranking, seed=seed),
        evaluate_rankings("popularity", dataset, scorer, case_ids, popularity_ranking, seed=seed),
    ]
    for policy, folder in models.items():
        sampler.load_model(folder)
        for slow in (False, True) if slow_thinking else (False,):
            result = evaluate_agent(
                sampler,
                agent,
                dataset,
                scorer,
                case_ids,
                policy=policy,
                slow_thinking=slow,
                batch_size=batch_size,
                seed=seed,
            )
            results.append(result)
    return results


def evaluate_rankings(
    policy: str,
    dataset: Dataset,
    scorer: Scorer,
    case_ids: Sequence[str],
    ranker: Callable[[Case, int], list[str]],
    *,
    seed: int = 0,
) -> PolicyResult:
    """A policy without a model: `ranker(case, seed)` gives the item ids, best first."""
    rankings = [ranker(dataset.case(case_id), seed) for case_id in case_ids]
    malformed, history_shed = [False] * len(case_ids), [0] * len(case_ids)
    table = pa.table([list(case_ids), rankings, malformed, history_shed], schema=RANKINGS)
    return _result(policy, table, _score(scorer, table))


def evaluate_agent(
    sampler: Sampler,
    agent: Mind,
    dataset: Dataset,
    scorer: Scorer,
    case_ids: Sequence[str],
    *,
    policy: str,
    slow_thinking: bool,
    batch_size: int = 64,
    seed: int = 0,
) -> PolicyResult:
    """The agent's greedy rankings of the cases, scored.

    Fast thinking ranks each case with the summary that its memory begins with. Slow thinking
    first ranks the same user's earlier round, is told the real choice once that ranking was
    scored, reflects on it, and ranks the case with the summary that comes of it.

    Args:
        policy: the name of the result; "+slow" is added with slow thinking.
        batch_size: tasks sent to the sampler at once.

    Raises:
        ConfigError: slow thinking without an earlier round of some user.
        STARecError: if the sampler or the scorer leaves out cases.
    """
    name = policy + SLOW if slow_thinking else policy
    earlier = earlier_cases(dataset, case_ids) if slow_thinking else {}
    rankings: list[pa.Table] = []
    scores: list[pa.Table] = []
    malformed_reflections: list[bool] = []
    with phase(f"evaluate {name}", len(case_ids)) as progress:
        for batch in _batches(case_ids, batch_size):
            if slow_thinking:
                before = [earlier[case_id] for case_id in batch]
                reflections = _reflections(sampler, agent, scorer, before, seed)
                summaries = reflections["summary"].to_pylist()
                malformed_reflections += reflections["malformed"].to_pylist()
            else:
                summaries = [agent.initial_summary(case_id) for case_id in batch]
            table = _rank(sampler, batch, summaries, seed)
            rankings.append(table)
            scores.append(_score(scorer, table))
            progress.advance(len(batch))
    result = _result(name, pa.concat_tables(rankings), pa.concat_tables(scores))
    if not slow_thinking:
        return result
    return replace(result, malformed_reflections=np.array(malformed_reflections, bool))


def earlier_cases(dataset: Dataset, case_ids: Sequence[str]) -> dict[str, str]:
    """Each case to the same user's case of the round before.

    Raises:
        ConfigError: naming a case that has none.
    """
    earlier = {}
    for split in dict.fromkeys(dataset.case(case_id).split for case_id in case_ids):
        for case_id in dataset.case_ids(split):
            following = dataset.next_case_id(case_id)
            if following is not None:
                earlier[following] = case_id
    alone = [case_id for case_id in case_ids if case_id not in earlier]
    if alone:
        raise ConfigError(
            f"slow thinking needs an earlier round to reflect on, and {len(alone)} of "
            f"{len(case_ids)} cases have none, the first is {alone[0]}. Prepare the data with "
            "rounds of 2 or more, or evaluate without slow thinking."
        )
    return {case_id: earlier[case_id] for case_id in case_ids}


def _reflections(
    sampler: Sampler, agent: Mind, scorer: Scorer, case_ids: Sequence[str], seed: int
) -> pa.Table:
    """Reflections on these cases (ROLLOUTS), once they are ranked and the real choices known. A
    malformed one's summary is that of before."""
    summaries = [agent.initial_summary(case_id) for case_id in case_ids]
    predictions = _rank(sampler, case_ids, summaries, seed)
    chosen = _score(scorer, predictions)["chosen"].to_pylist()
    rankings = predictions["ranking"].to_pylist()
    tasks: list[Task] = [
        ReflectTask(case_id, summary, tuple(ranking), choice)
        for case_id, summary, ranking, choice in zip(
            case_ids, summaries, rankings, chosen, strict=True
        )
    ]
    return _greedy(sampler, tasks, seed)


def _rank(
    sampler: Sampler, case_ids: Sequence[str], summaries: Sequence[str], seed: int
) -> pa.Table:
    """Fast thinking: one greedy ranking a case, schema RANKINGS."""
    tasks: list[Task] = [RankTask(*task) for task in zip(case_ids, summaries, strict=True)]
    return _greedy(sampler, tasks, seed).select(RANKINGS.names).cast(RANKINGS)


def _greedy(sampler: Sampler, tasks: list[Task], seed: int) -> pa.Table:
    rollouts = sampler.sample(tasks, rollouts=1, temperature=0.0, seed=seed)
    _check_answers("sampler", [task.case_id for task in tasks], rollouts)
    return rollouts


def _score(scorer: Scorer, rankings: pa.Table) -> pa.Table:
    scores = scorer.score(rankings)
    _check_answers("scorer", rankings["case_id"].to_pylist(), scores)
    return scores


def _check_answers(who: str, asked: list[str], answers: pa.Table) -> None:
    if answers["case_id"].to_pylist() != asked:
        raise STARecError(
            f"the {who} was asked about {len(asked)} cases and answered {answers.num_rows}, or "
            "in another order: an evaluation over some of the cases would mean nothing."
        )


def _result(policy: str, rankings: pa.Table, scores: pa.Table) -> PolicyResult:
    return PolicyResult(
        policy,
        tuple(rankings["case_id"].to_pylist()),
        scores["target_rank"].to_numpy().astype(np.int64),
        rankings["malformed"].to_numpy(),
        rankings["history_shed"].to_numpy().astype(np.int64),
    )


def _batches(case_ids: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (case_ids[start : start + size] for start in range(0, len(case_ids), size))
