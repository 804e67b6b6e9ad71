"""A run's two stages with all that they leave behind: metrics, rollouts, checkpoints, models."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.rllib.utils.metrics import EVALUATION_RESULTS
from rich.console import Console
from rich.markup import escape

from starec_ray.algorithm import STARec
from starec_ray.checkpoints.checkpoints import Checkpoints, is_full
from starec_ray.cluster.failures import FailureEvent
from starec_ray.config.recipe import Recipe
from starec_ray.errors import CollapseError, StorageError
from starec_ray.jobs.collapse import way_back
from starec_ray.jobs.resume import bring_anchored_model, standing
from starec_ray.progress import phase
from starec_ray.run_dir import RunDir
from starec_ray.training.learner_calls import LearnersLostError
from starec_ray.training.recovery import Recovery


class TrainingRun:
    """An algorithm at work for a run.

    Args:
        algo: in whatever state; `complete` brings it to where it begins.
        recipe: how long the run is, and when it is saved.
        run: its folder.
        checkpoints: of the run.
        console: where losses and what is gone on from are told.
    """

    def __init__(
        self,
        algo: STARec,
        recipe: Recipe,
        run: RunDir,
        checkpoints: Checkpoints,
        console: Console,
    ) -> None:
        self.algo = algo
        self.recipe = recipe
        self.run = run
        self.checkpoints = checkpoints
        self.console = console

    def complete(self, start: Path | None) -> None:
        """Both stages, from a checkpoint or the beginning, and the trained model; where learners
        are lost on the way, they are started again and it goes on from the newest checkpoint,
        unless that can't help any more.

        Raises:
            TooManyFailuresError, CollapseError, StorageError, DeadlineError: what ended it.
        """
        recover = Recovery(
            lambda: self.algo.training_iteration,
            lambda: self._go_back(self.checkpoints.newest()),
        )
        if start:
            recover(lambda: self._go_back(start))
        recover(self._both_stages)

    def tell_failure(self, event: FailureEvent) -> None:
        """Of an actor that was lost, or is back."""
        self.run.append_failure(event)
        name = f"{event.kind.replace('_', ' ')} {event.number}"
        if event.seconds is None:
            text = f"[yellow]{name} was lost:[/] {escape(event.cause)}"
            self.console.print(text, soft_wrap=True)
        else:
            self.console.print(f"{name} is back after {event.seconds:.1f} s")

    def raise_if_full(self, error: Exception) -> None:
        """
        Raises:
            StorageError: it is the run's disk that is full.
        """
        if is_full(error, self.run.path):
            raise StorageError(
                f"the disk of {self.run.path} is full ({error}): make room, then --resume."
            ) from error

    def _both_stages(self) -> None:
        try:
            self._anchor()
            self._reinforce()
            self.algo.save_model(self.run.model)
            self.console.print(f"trained model: {self.run.model}")
        except LearnersLostError as error:
            self.raise_if_full(error)
            raise
        except KeyboardInterrupt:
            told = standing(self.algo.training_iteration, self.checkpoints)
            self.console.print(f"[yellow]stopped:[/] {told}", highlight=False)
            raise

    def _anchor(self) -> None:
        """What is left of stage one. A checkpoint of its end is there afterwards, and the first
        one of a run without a stage one."""
        algo, line = self.algo, None
        if algo.stage != "anchor" and self.checkpoints.all():
            return
        if algo.stage == "anchor":
            with phase("anchor", algo.anchor_iterations - algo.training_iteration) as progress:
                while algo.stage == "anchor":
                    line = self._iteration()
                    progress.advance(note=_note(line))
                    if self._is_due() and algo.stage == "anchor":
                        self._save(line)
        if self.recipe.config.anchor_epochs:  # else the anchor is the untrained model
            algo.save_model(self.run.anchored_model)
        self._save(line)

    def _reinforce(self) -> None:
        """What is left of stage two."""
        algo, iterations, line = self.algo, self.recipe.run.iterations, None
        titles = {item.item_id: item.title for item in algo.dataset.items.values()}
        with phase("reinforce", iterations - algo.iterations_done) as progress:
            while algo.iterations_done < iterations:
                line = self._iteration()
                assert algo.latest_rollouts is not None
                self.run.write_rollouts(algo.training_iteration, algo.latest_rollouts, titles)
                progress.advance(note=_note(line))
                if self._is_due():
                    self._save(line)
        if line and not self._is_due():
            self._save(line)

    def _iteration(self) -> dict[str, Any]:
        """One of either stage, and its line of metrics."""
        algo, start = self.algo, time.perf_counter()
        try:
            result = algo.train()
        except CollapseError as error:
            self.run.append_metrics({"iteration": algo.training_iteration + 1, **algo.report})
            assert algo.latest_update is not None
            batch = self.run.write_batch(algo.latest_update)
            raise CollapseError(
                f"the run has collapsed: {error}. The batch of that update lies in {batch}. "
                f"{way_back(algo, self.run, self.checkpoints)}"
            ) from error
        line = {
            "iteration": algo.training_iteration,
            **algo.report,
            **result.get(EVALUATION_RESULTS, {}),
            "seconds/iteration": time.perf_counter() - start,
        }
        self.run.append_metrics(line)
        return line

    def _is_due(self) -> bool:
        every = self.recipe.run.checkpoint_every
        return every > 0 and self.algo.training_iteration % every == 0

    def _save(self, line: Mapping[str, Any] | None) -> None:
        """A checkpoint after the iteration of a line of metrics."""
        self.checkpoints.save(self.algo, score_of(line, self.recipe) if line else None)

    def _go_back(self, checkpoint: Path | None) -> None:
        if checkpoint is None:
            self.algo.start_over()
        else:
            self.algo.restore_from_path(checkpoint)
            if self.algo.stage == "reinforce" and self.recipe.config.anchor_epochs:
                bring_anchored_model(self.run, checkpoint)
        self.run.rewind(self.algo.training_iteration)
        place = checkpoint or "there was no checkpoint yet"
        self.console.print(f"going on after iteration {self.algo.training_iteration}: {place}")


def score_of(line: Mapping[str, Any], recipe: Recipe) -> float | None:
    """What a checkpoint after this iteration is worth, if `evaluation_interval` had validation
    users asked; those that are asked after an epoch of the anchor may be others."""
    every = recipe.config.evaluation_interval
    if not every or line["iteration"] % every:
        return None
    return line.get("validation", {}).get(recipe.run.metric)


def _note(line: Mapping[str, Any]) -> str:
    if line["stage"] == "anchor":
        parts = [f"loss {line.get('loss', math.nan):.3f}"]
        if "held_out_nll" in line:
            parts.append(f"NLL held out {line['held_out_nll']:.3f}")
        if users := line.get("validation"):
            parts.append(f"NDCG@10 {100 * users['ndcg@10']:.1f}")
            parts.append(f"malformed {100 * users['malformed_rate']:.0f} %")
        return ", ".join(parts)
    kl = f", KL {line['kl']:.4f}" if "kl" in line else ""
    return (
        f"reward {line['rank/reward']:+.3f}, NDCG@10 {100 * line['rank/ndcg@10']:.1f}, "
        f"malformed {100 * line['rank/malformed']:.0f} %{kl}"
    )
