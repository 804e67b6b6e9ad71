"""Fast and slow thinking over the cases, with a scripted policy in the model's place."""

import pyarrow as pa
import pytest

from starec_ray.agent.tasks import RankTask, ReflectTask
from starec_ray.data.dataset import Dataset
from starec_ray.data.prepare import prepare
from starec_ray.errors import ConfigError, DataError, STARecError
from starec_ray.evaluation.evaluate import (
    check_cases,
    earlier_cases,
    evaluate_agent,
    evaluate_all,
    evaluation_case_ids,
)


def run(world, *, slow_thinking: bool, batch_size: int = 64):
    return evaluate_agent(
        world.sampler,
        world.agent,
        world.dataset,
        world.scorer,
        evaluation_case_ids(world.dataset),
        policy="scripted",
        slow_thinking=slow_thinking,
        batch_size=batch_size,
    )


def test_the_last_round_of_every_user_is_evaluated(world) -> None:
    assert evaluation_case_ids(world.dataset) == ["u0/1", "u1/1", "u2/1", "u3/1"]


def test_a_limit_takes_the_same_random_sample_each_time_in_the_same_order(world) -> None:
    for limit in (1, 2, 3):
        some = evaluation_case_ids(world.dataset, limit=limit)
        assert len(some) == limit and some == sorted(some)
        assert set(some) <= set(evaluation_case_ids(world.dataset))
        assert some == evaluation_case_ids(world.dataset, limit=limit)
    assert some != evaluation_case_ids(world.dataset)[:3]


def test_a_split_without_cases_is_named(world) -> None:
    with pytest.raises(DataError, match="'validation'"):
        evaluation_case_ids(world.dataset, "validation")


def test_fast_thinking_ranks_once_with_the_first_summary(world) -> None:
    result = run(world, slow_thinking=False)
    assert (result.policy, result.slow_thinking) == ("scripted", False)
    assert result.case_ids == ("u0/1", "u1/1", "u2/1", "u3/1")
    assert result.target_ranks.tolist() == [1, 2, 3, 4]  # the order shown
    assert not world.reflections() and result.malformed_reflections is None


def test_slow_thinking_ranks_with_what_it_learned_in_the_earlier_round(world) -> None:
    result = run(world, slow_thinking=True)
    assert (result.policy, result.slow_thinking) == ("scripted+slow", True)
    assert result.case_ids == ("u0/1", "u1/1", "u2/1", "u3/1")
    assert result.target_ranks.tolist() == [1, 1, 1, 1]
    assert [task.case_id for task in world.reflections()] == ["u0/0", "u1/0", "u2/0", "u3/0"]
    assert world.reflections()[1].predicted == ("Drama0", "Horror0", "Comedy0", "War0")
    assert result.malformed_reflections is not None and not result.malformed_reflections.any()


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_choice_is_seen_only_after_the_ranking_was_scored(world, batch_size: int) -> None:
    run(world, slow_thinking=True, batch_size=batch_size)
    evaluated = set(evaluation_case_ids(world.dataset))
    ranked: set[str] = set()
    revealed: dict[str, str] = {}
    for entry in world.log:
        if isinstance(entry, RankTask):
            assert entry.case_id not in revealed
            ranked.add(entry.case_id)
        elif isinstance(entry, ReflectTask):
            assert entry.case_id not in evaluated
            assert revealed[entry.case_id] == entry.chosen
        else:
            _, case_id, chosen = entry
            assert case_id in ranked
            revealed[case_id] = chosen


def test_the_round_before_the_last_of_three_is_the_earlier_one(tmp_path) -> None:
    users = {"simulated_users": 12, "train_users": 2, "validation_users": 2, "test_users": 4}
    prepare("synthetic", tmp_path / "data", rounds=3, **users)
    dataset = Dataset.load(tmp_path / "data")
    last = evaluation_case_ids(dataset)
    assert earlier_cases(dataset, last) == {f"{c[:-1]}2": f"{c[:-1]}1" for c in last}


def test_batches_change_nothing(make_world) -> None:
    one, all_at_once = make_world(), make_world()
    ranks = run(one, slow_thinking=True, batch_size=1).target_ranks
    assert ranks.tolist() == run(all_at_once, slow_thinking=True).target_ranks.tolist()


def test_slow_thinking_without_an_earlier_round_says_what_to_do(make_world) -> None:
    with pytest.raises(ConfigError, match="rounds of 2 or more"):
        run(make_world(rounds=1), slow_thinking=True)


@pytest.mark.parametrize("limit", [0, 2])
def test_what_an_evaluation_would_stop_at_is_told_before_it(make_world, limit) -> None:
    dataset = make_world(rounds=1).dataset
    check_cases(dataset, "test", limit, slow_thinking=False)
    with pytest.raises(ConfigError, match="rounds of 2 or more"):
        check_cases(dataset, "test", limit, slow_thinking=True)
    with pytest.raises(DataError, match="'validation'"):
        check_cases(dataset, "validation", limit, slow_thinking=False)


def test_a_case_left_out_is_an_error(world) -> None:
    score = world.scorer.score
    world.scorer.score = lambda rankings: score(rankings).slice(1)
    with pytest.raises(STARecError, match="scorer was asked about 4 cases and answered 3"):
        run(world, slow_thinking=False)


def test_malformed_reflections_are_counted_by_case(world) -> None:
    sample = world.sampler.sample

    def one_malformed(tasks, **options) -> pa.Table:
        table = sample(tasks, **options)
        broken = [
            row["kind"] == "reflect" and row["case_id"] == "u2/0" for row in table.to_pylist()
        ]
        return table.set_column(
            table.schema.get_field_index("malformed"),
            table.schema.field("malformed"),
            pa.array(broken),
        )

    world.sampler.sample = one_malformed
    result = run(world, slow_thinking=True, batch_size=3)
    assert result.malformed_reflections.tolist() == [False, False, True, False]
    assert not result.malformed.any()
    assert result.malformed_rates() == {"malformed_rate": 0.0, "malformed_reflection_rate": 0.25}


def test_malformed_replies_and_shed_history_are_counted_and_still_ranked(world) -> None:
    sample = world.sampler.sample

    def one_malformed(tasks, **options) -> pa.Table:
        rows = sample(tasks, **options).to_pylist()
        rows[2] |= {"malformed": True, "history_shed": 5}
        return pa.Table.from_pylist(rows, schema=sample(tasks, **options).schema)

    world.sampler.sample = one_malformed
    result = run(world, slow_thinking=False)
    assert result.malformed.tolist() == [False, False, True, False]
    assert result.history_shed.tolist() == [0, 0, 5, 0]
    assert result.target_ranks.tolist() == [1, 2, 3, 4]


def test_every_policy_is_evaluated_on_the_same_cases_in_order(world) -> None:
    results = evaluate_all(
        world.sampler,
        world.agent,
        world.dataset,
        world.scorer,
        evaluation_case_ids(world.dataset),
        {"untrained": "a-folder", "reinforced": "b-folder"},
    )
    names = ["random", "popularity", "untrained", "untrained+slow", "reinforced", "reinforced+slow"]
    assert [result.policy for result in results] == names
    assert len({result.case_ids for result in results}) == 1
    loads = [entry for entry in world.log if isinstance(entry, tuple) and entry[0] == "load_model"]
    assert loads == [("load_model", "a-folder"), ("load_model", "b-folder")]


def test_an_evaluation_without_slow_thinking_has_no_slow_policies(world) -> None:
    results = evaluate_all(
        world.sampler,
        world.agent,
        world.dataset,
        world.scorer,
        evaluation_case_ids(world.dataset),
        {"untrained": "a-folder"},
        slow_thinking=False,
    )
    assert [each.policy for each in results] == ["random", "popularity", "untrained"]
    assert not world.reflections()


def test_another_seed_has_another_random_order(world) -> None:
    cases = evaluation_case_ids(world.dataset)
    asked = world.sampler, world.agent, world.dataset, world.scorer, cases, {}
    orders = {tuple(evaluate_all(*asked, seed=seed)[0].target_ranks) for seed in range(10)}
    assert len(orders) > 1
