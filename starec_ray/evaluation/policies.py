"""Rankers without a model: the floor and the baseline that every model is compared with."""

import zlib

import numpy as np

from starec_ray.data.dataset import Case
from starec_ray.metrics import rank_with_ties


def random_ranking(case: Case, seed: int) -> list[str]:
    """The candidates' item ids in a random order, the same for the same case and seed.

    The target's rank is uniform: of 20 candidates NDCG@1 is 5.0, @5 14.7, @10 22.7 and @20 35.2
    (x100) in expectation.
    """
    rng = _case_rng(case, seed)
    return [case.candidates[index].item_id for index in rng.permutation(len(case.candidates))]


def popularity_ranking(case: Case, seed: int) -> list[str]:
    """The candidates' item ids, most popular in the catalog first.

    Popularity leaves the held-out targets out. Items of equal popularity are in a random order,
    the same for the same case and seed.
    """
    scores = [item.popularity for item in case.candidates]
    order = np.argsort(rank_with_ties(scores, _case_rng(case, seed)))
    return [case.candidates[index].item_id for index in order]


def _case_rng(case: Case, seed: int) -> np.random.Generator:
    """Depends on the case's id, not on its place: a subset of the cases is ranked alike."""
    return np.random.default_rng([seed, zlib.crc32(case.case_id.encode())])
