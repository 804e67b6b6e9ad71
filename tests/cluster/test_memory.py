"""The memory that an env runner and a learner take adds up by hand."""

from types import SimpleNamespace

from starec_ray.cluster.memory import learner_bytes, runner_bytes


def test_an_engine_on_cpus_is_all_its_processes_and_one_on_gpus_the_share_of_each():
    parts = {"tensor_parallel_size": 2, "kv_cache_gib": 0.5}
    on_cpus = SimpleNamespace(**parts, num_gpus_per_env_runner=0)
    assert runner_bytes(10**9, 4, on_cpus) == 4e9 + 2 * 0.5 * 2**30
    on_gpus = SimpleNamespace(**parts, num_gpus_per_env_runner=2)
    assert runner_bytes(10**9, 4, on_gpus) == 2e9


def test_a_learners_bytes_add_up_in_either_dtype_and_every_stage():
    def of(stage: int, bytes_each: int, kl_coeff: float = 0.0) -> float:
        config = SimpleNamespace(num_learners=2, zero_stage=stage, kl_coeff=kl_coeff)
        return learner_bytes(1000, bytes_each, config) / 1000

    # Weights, gradients, master copy and moments of which each learner has half, anchor.
    assert of(1, 2) == 2 + 4 + (4 + 8) / 2
    assert of(2, 2, kl_coeff=0.1) == 2 + 4 / 2 + (4 + 8) / 2 + 2
    assert of(2, 4) == 4 + 4 / 2 + (4 + 8) / 2
    assert of(3, 2) == (2 + 4 + 4 + 8) / 2
    assert of(3, 4, kl_coeff=0.1) == (4 + 4 + 8 + 4) / 2  # float32 weights are the master copy
