"""What population based training makes of a space."""

from types import SimpleNamespace

import pytest
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler

from starec_ray.algorithm import STARec
from starec_ray.config import STARecConfig
from starec_ray.config.fields import attribute_of
from tune.population import copy_whole, fit, population
from tune.space import Space, SweepSettings

FIELDS = {
    "training.lr": {"loguniform": [1e-6, 1e-4]},
    "training.reflect_share": {"uniform": [0.5, 0.95]},
    "training.group_size": {"randint": [2, 9]},
    "training.cases_per_iteration": {"choice": [4, 8, 64]},
    "rewards.reward_shape": {"choice": ["tiers", "ndcg"]},
}
SPACE = Space(SweepSettings(scheduler="pbt"), FIELDS)


def test_a_copy_is_whole_where_files_have_no_second_names(tmp_path, monkeypatch):
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "weights").write_text("new")
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "old").touch()

    def refuse(*_: object, **__: object) -> None:
        raise OSError("not supported")

    monkeypatch.setattr("os.link", refuse)
    copy_whole(tmp_path / "from", tmp_path / "to")
    assert [(p.name, p.read_text()) for p in (tmp_path / "to").iterdir()] == [("weights", "new")]


@pytest.fixture
def copied():
    """The settings of a trial after so many copies, each made of the one before."""
    scheduler = population(SPACE, "iterations_done")

    def copy(settings: dict, times: int) -> list[dict]:
        made = []
        for _ in range(times):
            settings, _ = scheduler._get_new_config(None, SimpleNamespace(config=settings))
            made.append(settings)
        return made

    return copy


def test_values_vary_and_stay_where_the_space_has_them(copied):
    settings = {
        "lr": 9e-5,
        "reflect_share": 0.94,
        "group_size": 8,
        "cases_per_iteration": 64,
        "reward_shape": "ndcg",
    }
    made = copied(settings, 300)
    for key, field in FIELDS.items():
        values = [one[attribute_of(key)] for one in made]
        assert len(set(values)) > 1
        if "choice" in field:
            assert set(values) <= set(field["choice"])
        else:
            low, high = field.get("randint", [0, 0])
            least, most = (low, high - 1) if high else next(iter(field.values()))
            assert least <= min(values) and max(values) <= most
            assert {type(value) for value in values} == {int if high else float}


@pytest.mark.parametrize(
    ("there", "room"),
    [
        ({"CPU": 9, "GPU": 6}, True),
        ({"CPU": 8, "GPU": 6}, False),
        ({"CPU": 9}, False),
    ],
)
def test_trials_have_room_where_the_cluster_holds_all_of_them_at_a_time(there, room):
    config = (
        STARecConfig()
        .env_runners(num_env_runners=1, num_gpus_per_env_runner=1)
        .learners(num_learners=1, num_gpus_per_learner=1)
    )
    place = STARec.default_resource_request(config.to_dict())
    assert fit([SimpleNamespace(placement_group_factory=place)] * 3, there) == room


def test_a_population_perturbs_after_the_iterations_asked_for():
    fields = {"training.lr": {"loguniform": [1e-6, 1e-4]}}
    space = Space(SweepSettings(scheduler="pbt", grace_iterations=7), fields)
    assert population(space, "iterations_done")._perturbation_interval == 7


@pytest.mark.parametrize(
    ("cpus", "decision"), [(2, TrialScheduler.CONTINUE), (1, TrialScheduler.PAUSE)]
)
def test_a_trial_is_paused_only_to_make_room_for_another(monkeypatch, cpus, decision):
    monkeypatch.setattr(PopulationBasedTraining, "on_trial_result", lambda *_: TrialScheduler.PAUSE)
    monkeypatch.setattr("tune.population.ray.cluster_resources", lambda: {"CPU": cpus})
    place = SimpleNamespace(required_resources={"CPU": 1})
    going, ended = (
        SimpleNamespace(is_finished=lambda done=done: done, placement_group_factory=place)
        for done in (False, True)
    )
    controller = SimpleNamespace(get_trials=lambda: [ended, going, going])
    space = Space(SweepSettings(scheduler="pbt"), {"training.lr": {"uniform": [1e-6, 1e-4]}})
    scheduler = population(space, "iterations_done")
    assert scheduler.on_trial_result(controller, going, {}) == decision
