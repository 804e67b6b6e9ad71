"""The tables of docs/cluster.md are those that the program computes, and the sums are right."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from starec_ray.cluster import sizing
from starec_ray.cluster.sizing import SHAPES, engine, iteration, learner

DOCS = Path(__file__).parents[2] / "docs" / "cluster.md"
SEVEN = next(shape for shape in SHAPES if shape.name == "7B")


@pytest.mark.parametrize("name", ["model", "growth"])
def test_the_docs_show_what_is_computed(name):
    shown = DOCS.read_text().split(f"<!-- {name} table -->\n")[1].split("\n<!-- end -->")[0]
    assert shown == getattr(sizing, f"{name}_table")()


def test_weights_states_and_cache_of_7b_add_up_by_hand():
    assert SEVEN.weight_bytes == 2 * 7.62e9
    assert SEVEN.kv_bytes == 2 * 28 * 4 * 128 * 2 == 57344
    # Weights 2, gradients 4, master copy 4, Adam 8, anchor 2: 20 bytes a parameter over 4 ranks.
    assert learner(SEVEN).gpus == 4
    assert learner(SEVEN).state_bytes == pytest.approx(20 * 7.62e9 / 4)
    assert engine(SEVEN).weight_bytes + engine(SEVEN).kv_bytes == pytest.approx(0.85 * 80e9)


def test_an_engine_on_cpus_is_all_its_processes_and_one_on_gpus_the_share_of_each():
    parts = {"tensor_parallel_size": 2, "kv_cache_gib": 0.5}
    on_cpus = SimpleNamespace(**parts, num_gpus_per_env_runner=0)
    assert sizing.runner_bytes(10**9, 4, on_cpus) == 4e9 + 2 * 0.5 * 2**30
    on_gpus = SimpleNamespace(**parts, num_gpus_per_env_runner=2)
    assert sizing.runner_bytes(10**9, 4, on_gpus) == 2e9


def test_decoding_alone_is_bound_by_reading_the_weights():
    seconds_a_token = 1 / engine(SEVEN, at_a_time=1).tokens_per_second
    weights_read = SEVEN.weight_bytes / (0.6 * 3.35e12)
    assert weights_read < seconds_a_token < 1.1 * weights_read


def test_what_is_planned_fits_its_gpus():
    for shape in SHAPES:
        e, t = engine(shape), learner(shape)
        assert e.weight_bytes + e.kv_bytes <= sizing.ENGINE_SHARE * sizing.GPU_BYTES
        assert t.state_bytes + t.activation_bytes <= sizing.LEARNER_SHARE * sizing.GPU_BYTES


def test_a_batch_that_does_not_grow_leaves_a_large_cluster_idle():
    small, large = iteration(SEVEN, 8, 64), iteration(SEVEN, 512, 64)
    assert large.update < small.update / 32
    assert large.sampling > small.sampling / 4  # 64 times the GPUs
    grown = iteration(SEVEN, 512, 64 * 64)
    assert grown.sampling == pytest.approx(small.sampling)


def test_a_learners_bytes_add_up_in_either_dtype_and_every_stage():
    def of(stage: int, bytes_each: int, kl_coeff: float = 0.0) -> float:
        config = SimpleNamespace(num_learners=2, zero_stage=stage, kl_coeff=kl_coeff)
        return sizing.learner_bytes(1000, bytes_each, config) / 1000

    # Weights, gradients, master copy and moments of which each learner has half, anchor.
    assert of(1, 2) == 2 + 4 + (4 + 8) / 2
    assert of(2, 2, kl_coeff=0.1) == 2 + 4 / 2 + (4 + 8) / 2 + 2
    assert of(2, 4) == 4 + 4 / 2 + (4 + 8) / 2
    assert of(3, 2) == (2 + 4 + 4 + 8) / 2
    assert of(3, 4, kl_coeff=0.1) == (4 + 4 + 8 + 4) / 2  # float32 weights are the master copy
