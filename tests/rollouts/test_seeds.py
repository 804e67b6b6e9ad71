"""Seeds of an iteration's requests."""

from starec_ray.rollouts.collect import SEED_STEP, seed_of

REQUESTS = 256  # of an iteration, in each of its three kinds


def test_runs_of_neighbouring_seeds_and_their_iterations_share_no_request_seed():
    seeds = [
        seed_of(run_seed, number) + kind * SEED_STEP + request
        for run_seed in range(3)
        for number in range(20)
        for kind in range(3)
        for request in range(REQUESTS)
    ]
    assert len(set(seeds)) == len(seeds)


def test_an_iteration_has_the_same_seed_in_every_process():
    assert (seed_of(1, 0), seed_of(1, 1)) == (1835504127, 1189033389)
