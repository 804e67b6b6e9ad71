"""How many trials are drawn at a time."""

import pytest
from ray import tune
from ray.tune.search import SearchGenerator

from tune.space import SweepSettings
from tune.sweep import searcher


@pytest.mark.parametrize("name", ["random", "optuna"])
@pytest.mark.parametrize(("most", "drawn"), [(0, 4), (2, 2)])
def test_no_more_trials_are_drawn_than_may_run_at_a_time(name, most, drawn):
    found = searcher(SweepSettings(searcher=name, max_concurrent=most), seed=0)
    found.set_search_properties("score", "max", {"lr": tune.uniform(0, 1)})
    drawing = found if name == "random" else SearchGenerator(found)
    experiment = {"run": str, "config": {"lr": tune.uniform(0, 1)}, "num_samples": 4}
    tune.register_trainable("score", lambda config: None)
    drawing.add_configurations(tune.Experiment("e", **{**experiment, "run": "score"}))
    trials = [drawing.next_trial() for _ in range(4)]
    assert sum(trial is not None for trial in trials) == drawn
