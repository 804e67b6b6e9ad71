"""The rankers without a model."""

from collections import Counter

from starec_ray.evaluation.policies import popularity_ranking, random_ranking


def test_random_order_is_a_permutation_that_the_seed_and_the_case_decide(world) -> None:
    one, other = world.dataset.case("u0/0"), world.dataset.case("u1/0")
    assert sorted(random_ranking(one, 0)) == sorted(item.item_id for item in one.candidates)
    assert random_ranking(one, 7) == random_ranking(one, 7)
    assert any(random_ranking(one, seed) != random_ranking(other, seed) for seed in range(10))


def test_random_order_puts_each_candidate_first_equally_often(world) -> None:
    case = world.dataset.case("u0/0")
    first = Counter(random_ranking(case, seed)[0] for seed in range(2000))
    assert all(abs(count / 2000 - 0.25) < 0.04 for count in first.values())


def test_popularity_ranks_the_popular_first_and_ties_at_random(world) -> None:
    case = world.dataset.case("u0/0")
    rankings = [popularity_ranking(case, seed) for seed in range(400)]
    assert all(set(ranking[:2]) == {"Drama0", "Horror0"} for ranking in rankings)
    drama_first = sum(ranking[0] == "Drama0" for ranking in rankings) / 400
    assert abs(drama_first - 0.5) < 0.1
    assert popularity_ranking(case, 3) == rankings[3]
