"""The main job: anchor, reinforce, save, evaluate, into a run directory."""

import math
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from starec_ray.algorithm import STARec
from starec_ray.cluster import check_resources, start_ray
from starec_ray.errors import ConfigError
from starec_ray.evaluation.plots import plot_training
from starec_ray.evaluation.run import compare, trained_models
from starec_ray.evaluation.session import SavedModels, Session
from starec_ray.plan import REMEDY, actor_resources
from starec_ray.progress import phase
from starec_ray.recipe import Recipe, resolved_sections
from starec_ray.run_dir import RunDir


def train(recipe: Recipe, run_path: Path, console: Console, *, overwrite: bool = False) -> RunDir:
    """Trains by a recipe and evaluates; the run directory holds everything that came of it.

    Raises:
        ConfigError: if the folder holds a run already and `overwrite` is False, or is in use, or
            the recipe can't be run.
    """
    run = RunDir(run_path)
    with run.lock():
        recipe.config.resolve()
        if run.metrics.exists():
            if not overwrite:
                raise ConfigError(
                    f"{run.path} holds a run already: give another --run-dir, or --overwrite."
                )
            run.clear()
        run.write_config(resolved_sections(recipe))
        start_ray(recipe.run.ray)
        check_resources(actor_resources(recipe.config), REMEDY)
        console.print(f"starting actors: {_actors(recipe)}")
        algo = recipe.config.build_algo()
        assert isinstance(algo, STARec)
        try:
            _iterate(algo, recipe, run, console)
            plot_training(run.read_metrics(), run.path / "training.png")
            if recipe.run.evaluate:
                rewards = algo.reward_group
                session = Session(SavedModels(algo.runners), algo.agent, algo.dataset, rewards)
                untrained = Path(algo.config.model_path)
                models = {"untrained": untrained, **trained_models(run)}
                compare(session, models, recipe, run.path, console)
        finally:
            algo.stop()
            run.close()
    return run


def _iterate(algo: STARec, recipe: Recipe, run: RunDir, console: Console) -> None:
    titles = {item.item_id: item.title for item in algo.dataset.items.values()}
    for stage, iterations in (
        ("anchor", algo.anchor_iterations),
        ("reinforce", recipe.run.iterations),
    ):
        with phase(stage, iterations) as progress:
            for _ in range(iterations):
                start = time.perf_counter()
                algo.train()
                line = {
                    "iteration": algo.training_iteration,
                    **algo.report,
                    "seconds/iteration": time.perf_counter() - start,
                }
                done = algo.iterations_done
                every = recipe.run.validate_every
                if stage == "reinforce" and every and done % every == 0:
                    line |= algo.evaluate(limit=recipe.run.validation_cases)
                run.append_metrics(line)
                if stage == "reinforce":
                    kept = algo.latest_rollouts
                    assert kept is not None
                    run.write_rollouts(
                        algo.training_iteration,
                        kept,
                        rewards=kept["reward"],
                        advantages=kept["advantage"],
                        target_ranks=kept["target_rank"].to_pylist(),
                        chosen=kept["chosen"].to_pylist(),
                        titles=titles,
                    )
                    due = recipe.run.checkpoint_every and done % recipe.run.checkpoint_every == 0
                    if due or done == recipe.run.iterations:
                        algo.save_to_path(run.checkpoints / f"iteration-{done:05d}")
                progress.advance(note=_note(line))
        if stage == "anchor":
            algo.save_model(run.anchored_model)
    algo.save_model(run.model)
    console.print(f"trained model: {run.model}")


def _note(line: dict[str, Any]) -> str:
    if line["stage"] == "anchor":
        return f"NLL {line.get('loss', math.nan):.3f}"
    kl = f", KL {line['kl']:.4f}" if "kl" in line else ""
    return (
        f"reward {line['rank/reward']:+.3f}, NDCG@10 {100 * line['rank/ndcg@10']:.1f}, "
        f"malformed {100 * line['rank/malformed']:.0f} %{kl}"
    )


def _actors(recipe: Recipe) -> str:
    config = recipe.config
    return (
        f"{config.num_env_runners} vLLM env runner(s), {config.num_reward_actors} reward "
        f"actor(s), {max(1, config.num_learners)} DeepSpeed learner(s) with ZeRO-"
        f"{config.zero_stage}, {config.model_name} in {config.dtype}"
    )
