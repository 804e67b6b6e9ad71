"""The tables of docs/cluster.md are those that the program computes, and the sums are right."""

from pathlib import Path

import pytest

from scripts import cluster_sizes
from scripts.cluster_sizes import (
    ENGINE_SHARE,
    GPU_BYTES,
    LEARNER_SHARE,
    SHAPES,
    engine,
    iteration,
    learner,
)

DOCS = Path(__file__).parents[2] / "docs" / "cluster.md"
SEVEN = next(shape for shape in SHAPES if shape.name == "7B")


@pytest.mark.parametrize("name", ["model", "growth"])
def test_the_docs_show_what_is_computed(name):
    shown = DOCS.read_text().split(f"<!-- {name} table -->\n")[1].split("\n<!-- end -->")[0]
    assert shown == getattr(cluster_sizes, f"{name}_table")()


def test_weights_states_and_cache_of_7b_add_up_by_hand():
    assert SEVEN.weight_bytes == 2 * 7.62e9
    assert SEVEN.kv_bytes == 2 * 28 * 4 * 128 * 2 == 57344
    # Weights 2, gradients 4, master copy 4, Adam 8, anchor 2: 20 bytes a parameter over 4 ranks.
    assert learner(SEVEN).gpus == 4
    assert learner(SEVEN).state_bytes == pytest.approx(20 * 7.62e9 / 4)
    assert engine(SEVEN).weight_bytes + engine(SEVEN).kv_bytes == pytest.approx(0.85 * 80e9)


def test_decoding_alone_is_bound_by_reading_the_weights():
    seconds_a_token = 1 / engine(SEVEN, at_a_time=1).tokens_per_second
    weights_read = SEVEN.weight_bytes / (0.6 * 3.35e12)
    assert weights_read < seconds_a_token < 1.1 * weights_read


def test_what_is_planned_fits_its_gpus():
    for shape in SHAPES:
        e, t = engine(shape), learner(shape)
        assert e.weight_bytes + e.kv_bytes <= ENGINE_SHARE * GPU_BYTES
        assert t.state_bytes + t.activation_bytes <= LEARNER_SHARE * GPU_BYTES


def test_a_batch_that_does_not_grow_leaves_a_large_cluster_idle():
    small, large = iteration(SEVEN, 8, 64), iteration(SEVEN, 512, 64)
    assert large.update < small.update / 32
    assert large.sampling > small.sampling / 4  # 64 times the GPUs
    grown = iteration(SEVEN, 512, 64 * 64)
    assert grown.sampling == pytest.approx(small.sampling)
