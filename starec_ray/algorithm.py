"""STARec: anchored reinforcement training as an RLlib algorithm.

One `train()` call is a few optimiser steps on traces while stage one (the anchor) lasts, then one
GRPO iteration of stage two: rank, feedback, reflect, rank again, update.
"""

import functools
import json
import math
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
from ray.tune import PlacementGroupFactory

from actors.reward_group import RewardGroup
from actors.weight_transfer.choice import weight_transfer
from starec_ray.agent.agent import Agent
from starec_ray.checkpoints.files import (
    FORMAT,
    LEARNERS,
    PROGRESS,
    REFERENCE,
    fault,
    progress_of,
    write_manifest,
)
from starec_ray.cluster.connection import start_ray
from starec_ray.cluster.failures import Failures
from starec_ray.cluster.placement import trial_place
from starec_ray.config import STARecConfig
from starec_ray.config.identity import identity
from starec_ray.data.dataset import Dataset
from starec_ray.errors import ConfigError, StorageError
from starec_ray.evaluation.evaluate import evaluate_agent, evaluation_case_ids
from starec_ray.files import local_path
from starec_ray.models.resolve import load_tokenizer
from starec_ray.rllib_algorithm import RLlibAlgorithm
from starec_ray.rollouts.case_order import CaseOrder
from starec_ray.rollouts.collect import Clock, Collector
from starec_ray.rollouts.ledger import Ledger
from starec_ray.rollouts.queue import RolloutQueue
from starec_ray.rollouts.sampling import RunnerPool
from starec_ray.training.alarms import Alarms
from starec_ray.training.anchor import AnchorData
from starec_ray.training.best_epoch import BestEpoch
from starec_ray.training.learner_calls import LearnerCalls
from starec_ray.training.parallel_start import ParallelLearnerStart
from starec_ray.training.traces import gather_traces, trace_files

MODEL = "model"  # a folder of a trial's checkpoint


class STARec(RLlibAlgorithm):
    """Trains slow-thinking recommender agents. See `STARecConfig` for what can be set."""

    config: STARecConfig

    @classmethod
    def get_default_config(cls) -> STARecConfig:
        return STARecConfig(cls)

    @classmethod
    def default_resource_request(cls, config: Any) -> PlacementGroupFactory:
        """A trial's place, of fields that nobody has checked: where they can't be, the trial fails
        and tells the cause. An error here would end all of the sweep."""
        return trial_place(cls.get_default_config().update_from_dict(config))

    def setup(self, config: STARecConfig) -> None:  # type: ignore[override]
        """Starts Ray, unless it runs, env runners and learners (RLlib), reward actors, and the
        driver's own parts."""
        self.config = self.config.copy(copy_frozen=False).resolve()
        self.config.freeze()
        config = self.config
        self.dataset = Dataset.load(config.data_path)
        self.agent = Agent.from_config(config, self.dataset)
        self.tokenizer = load_tokenizer(config.model_path)
        files = trace_files(config.traces)
        if config.anchor_epochs and 0 < len(config.traces) == len(files):
            _ = self.anchor_data  # a bad table is told of before any engine starts
        self.failures = Failures.from_config(config)
        self.identity = identity(config)
        self.shared_folder = self._shared_folder()
        start_ray({})
        with ParallelLearnerStart(config), self._env_runners_start():
            super().setup(config)
        assert self.env_runner_group is not None and self.learner_group is not None
        self.runners = RunnerPool.from_config(self.env_runner_group, config, self.failures)
        self.learners = LearnerCalls(self.learner_group, config.update_timeout_s, self.failures)
        self.reward_group = RewardGroup.from_config(config, self.failures)
        self.transfer = weight_transfer(config)
        self.collector = Collector(
            config,
            self.agent,
            self.dataset,
            self.runners,
            self.reward_group,
            CaseOrder(self.dataset.case_ids("train"), config.seed),
        )
        self.rollout_queue = RolloutQueue(
            self.collector.collect, self.runners.load_weights, config.max_staleness
        )
        self.anchored = False  # stage one is over, and the anchor frozen
        self.anchor_updates_done = 0
        self.iterations_done = 0  # of stage two
        self.best_epoch = BestEpoch(self.learners, lambda: self.shared_folder)
        self.weight_version = -1  # of the weights that were published last
        self.latest_rollouts: pa.Table | None = None  # what the run directory keeps
        self.latest_update: pa.Table | None = None  # the batch that the learners had last
        self.ledger = Ledger()
        self.alarms = Alarms(config)
        self.report: dict[str, Any] = {}
        self._logged: set[str] = set()  # keys of reports so far
        self._first_state = self.get_state()
        self._sync_weights()

    # --- the two stages ----------------------------------------------------------------------

    @property
    def stage(self) -> str:
        """ "anchor" until all its optimiser steps are done, then "reinforce"."""
        done = self.anchored or self.anchor_updates_done >= self.anchor_updates
        return "reinforce" if done else "anchor"

    def step(self) -> dict[str, Any]:
        """RLlib's: an iteration, and the evaluation that is due after it."""
        with self.learners.answering_for_weights():
            result = super().step()
        # RLlib repeats what other iterations, of the other stage too, have logged.
        foreign = self._logged - self.report.keys()
        nested = {key: value for key, value in self.report.items() if isinstance(value, dict)}
        return {key: value for key, value in result.items() if key not in foreign} | nested

    def training_step(self) -> None:
        """One iteration of the stage that the run is in; results go to `self.metrics`."""
        self.report = {"stage": self.stage}
        try:
            if self.stage == "anchor":
                self._anchor()
            else:
                self._reinforce()
        finally:  # a collapse has its line of metrics too
            self.report |= {
                "iterations_done": self.iterations_done,
                **self.ledger.report(),
                **self.failures.report(),
            }
        self.report |= self.memory()
        assert self.metrics
        for key, value in self.report.items():
            if isinstance(value, int | float):
                self._logged.add(key)
                self.metrics.log_value(key, value, window=1)

    def _anchor(self) -> None:
        """Stage one: token NLL on traces."""
        data, done = self.anchor_data, self.anchor_updates_done
        epoch_ends = (done // data.updates_per_epoch + 1) * data.updates_per_epoch
        last = min(epoch_ends, done + self.config.anchor_updates_per_iteration)
        with self._timed("update"):
            steps = [self._update(data.batch(step), "anchor") for step in range(done, last)]
        self.report |= {key: float(np.mean([step[key] for step in steps])) for key in steps[0]}
        self.report["skipped_steps"] = steps[-1]["skipped_steps"]  # a count, not a mean
        self.report |= {"traces_too_long": data.too_long, **self.collector.memory()}
        self.anchor_updates_done = last
        if last < epoch_ends:
            self._sync_weights()
        else:
            self._end_epoch()
        if self.stage == "reinforce":
            self.freeze_anchor()

    def _end_epoch(self) -> None:
        """Measures the anchor on held-out traces and users, and keeps the best epoch's weights."""
        config, score = self.config, math.nan
        if len(self.anchor_data.held_out):  # before the engines may take the learners' GPUs again
            with self._timed("validate"):
                nll = self.learners("nll", self.anchor_data.held_out)[0]["nll"]
            self.report["held_out_nll"] = nll
            score = -nll
        self._sync_weights()
        with self._timed("validate"):
            if cases := config.anchor_validation_cases:
                self.report |= self.evaluate(limit=cases)
                score = self.report["validation"]["ndcg@10"]
        chosen_by = len(self.anchor_data.held_out) or config.anchor_validation_cases
        if config.anchor_epochs == 1 or not chosen_by:
            return  # nothing to choose from, or nothing to choose by: the last epoch it is
        is_best = self.best_epoch.offer(score)
        if self.stage == "reinforce":
            if not is_best and self.best_epoch.take_back():
                self._sync_weights()
            self.best_epoch.clear()

    def _reinforce(self) -> None:
        """Stage two: GRPO on the rollouts of an iteration (`starec_ray.rollouts.collect`)."""
        if not self.anchored:  # there was no stage one
            self.freeze_anchor()
        with self._timed("wait_for_rollouts"):
            batch = self.rollout_queue.take(self.iterations_done)
        self.ledger.add(batch.ledger)
        self.report |= batch.report
        self.report["staleness"] = self.weight_version - batch.weight_version
        with self._timed("update"):
            self._update(batch.sequences, "grpo")
        self.iterations_done += 1
        self._sync_weights()
        self.latest_rollouts = batch.rollouts

    def freeze_anchor(self) -> None:
        """Makes the weights of now the anchor that the KL refers to."""
        self.learners("freeze_anchor")
        self.anchored = True
        self._drop_traces()

    # --- the parts of an iteration -----------------------------------------------------------

    @functools.cached_property
    def anchor_data(self) -> AnchorData:
        """The anchor's traces: of the sources given, else the template teacher's."""
        config = self.config
        return AnchorData(
            gather_traces(config, self.agent, lambda ranked: self.reward_group.score(ranked)),
            self.agent,
            self.tokenizer,
            longest_replies={
                "rank": config.max_rank_tokens,
                "reflect": config.max_reflect_tokens,
                "summarize": config.max_reflect_tokens,
            },
            weights=config.trace_weights,
            held_out_share=config.held_out_trace_share,
            epochs=config.anchor_epochs,
            batch_size=config.anchor_batch_size,
            seed=config.seed,
        )

    def _drop_traces(self) -> None:
        """Stage two doesn't learn from them, and lasts longer."""
        vars(self).pop("anchor_data", None)

    @property
    def anchor_updates(self) -> int:
        """Optimiser steps of stage one."""
        return self.anchor_data.updates if self.config.anchor_epochs else 0

    @property
    def anchor_iterations(self) -> int:
        """`train()` calls of stage one, those done included."""
        if not self.anchor_updates:
            return 0
        each = -(-self.anchor_data.updates_per_epoch // self.config.anchor_updates_per_iteration)
        return self.config.anchor_epochs * each

    def _update(self, batch: pa.Table, objective: str) -> dict[str, float]:
        """One optimiser step; `latest_update` is the batch that sets off an alarm, if one does."""
        self.latest_update = batch
        if self.config.sleep_while_learning:
            self.runners.sleep()
        metrics = self.learners("update_sequences", batch, objective=objective)[0]
        if objective != "anchor":
            self.ledger.learned(int(metrics["rollouts_trained"]), len(batch))
        metrics["tokens_per_second/update"] = metrics.pop("tokens_per_second")
        metrics["seconds/learner"] = metrics.pop("seconds")
        self.report |= metrics
        self.alarms.check(metrics)
        return metrics

    def _sync_weights(self) -> None:
        """Publishes the learners' weights and loads them into every env runner."""
        with self._timed("weight_transfer"), self.learners.answering_for_weights():
            self.weight_version = max(self.weight_version, self.runners.weight_version) + 1
            weights = self.transfer.publish(self.learners, self.weight_version)
            parts = self.rollout_queue.offer(weights)
        self.report |= {f"weight_transfer/{part}": seconds for part, seconds in parts.items()}

    def _timed(self, phase: str) -> AbstractContextManager[None]:
        return Clock(self.report)(phase)

    def memory(self) -> dict[str, float]:
        """Resident memory of driver and learners, bytes, by name; of learners also what of it is
        the reference's copy, and the peak of their GPU."""
        driver = {"memory_bytes/driver": float(psutil.Process().memory_info().rss)}
        learner = {
            f"{part.replace('rss', 'memory')}/learner_{i}": float(size)
            for i, parts in enumerate(self.learners("memory"))
            for part, size in parts.items()
        }
        return driver | learner

    def evaluate(
        self,
        parallel_train_future: Any = None,
        *,
        split: str = "validation",
        limit: int | None = None,
        slow_thinking: bool = False,
    ) -> dict[str, Any]:
        """The agent of now, greedy, on users that it doesn't train on.

        Args:
            split: "validation" or "test".
            limit: users asked, always the same ones; `config.validation_cases` by default.
            slow_thinking: each user's round before is ranked and reflected on first, and what is
                evaluated are the rankings with the summaries that come of it.

        Returns:
            {split: {"ndcg@10": …, "mrr": …, …, "malformed_rate": …}}, fractions 0 … 1.

        Raises:
            DataError: the split has no cases.
            ConfigError: slow thinking where some user has no round before.
        """
        self._call_back("on_evaluate_start")
        self.rollout_queue.settle()
        result = evaluate_agent(
            self.runners,
            self.agent,
            self.dataset,
            self.reward_group,
            evaluation_case_ids(self.dataset, split, limit or self.config.validation_cases),
            policy="now",
            slow_thinking=slow_thinking,
            batch_size=self.config.max_num_seqs * self.config.num_env_runners,
            seed=self.config.seed,
        )
        means = {name: float(values.mean()) for name, values in result.metrics().items()}
        metrics = {split: means | result.malformed_rates()}
        self._call_back("on_evaluate_end", evaluation_metrics=metrics)
        return metrics

    # --- saving ------------------------------------------------------------------------------

    def save_model(self, folder: str | Path) -> None:
        """Writes the model of now as safetensors with its tokenizer.

        Args:
            folder: one that learner 0's node sees; it is made.

        Raises:
            LearnersLostError: a learner failed, or took longer than `update_timeout_s`.
        """
        folder = local_path(folder).absolute()  # learners have working folders of their own
        self.learners("save_model", str(folder))

    def get_state(self, components: Any = None, **kwargs: Any) -> dict[str, Any]:
        """RLlib's state without the weights, and how far the run is."""
        return {
            "format": FORMAT,
            "training_iteration": self.training_iteration,
            "anchored": self.anchored,
            "anchor_updates_done": self.anchor_updates_done,
            "best_epoch_score": self.best_epoch.score,
            "iterations_done": self.iterations_done,
            "ledger": self.ledger.state(),
            "weight_version": self.weight_version,
            "identity": self.identity,
        }

    def _set_progress(self, state: dict[str, Any], dropped: Ledger) -> None:
        """
        Args:
            state: of `get_state`.
            dropped: what was sampled ahead meanwhile, and nobody learns from.
        """
        self._iteration = state["training_iteration"]
        self.anchored = state["anchored"]
        self.anchor_updates_done = state["anchor_updates_done"]
        self.best_epoch.score = state["best_epoch_score"]
        self.iterations_done = state["iterations_done"]
        self.ledger = Ledger.from_state(state["ledger"])
        self.ledger.add(dropped)
        self.weight_version = state["weight_version"]
        self.alarms = Alarms(self.config)
        if self.anchored:
            self._drop_traces()

    def save_to_path(self, path: str | Path | None = None, **kwargs: Any) -> str:
        """RLlib's checkpoint folder with the learners' shards (all ranks) beside it, and last a
        manifest of all that is in the folder.

        Args:
            path: a folder that all learners' nodes see.

        Raises:
            LearnersLostError: a learner failed, or took longer than `update_timeout_s`.
            StorageError: the learners see another folder there.
        """
        saved = super().save_to_path(path and local_path(path).absolute(), **kwargs)
        self.learners("save_checkpoint", str(Path(saved) / LEARNERS))
        if not (Path(saved) / LEARNERS).is_dir():
            raise StorageError(
                f"{saved} is another folder here than for the learners, which have written into "
                "theirs: keep runs on storage that all nodes share."
            )
        self.best_epoch.save(Path(saved))
        (Path(saved) / PROGRESS).write_text(json.dumps(self.get_state(), indent=1))
        write_manifest(Path(saved))
        return saved

    def restore_from_path(self, path: str | Path, **kwargs: Any) -> None:
        """Goes on from `save_to_path`: weights, optimiser, anchor, counters.

        Learners that were lost (`LearnersLostError`) are started again first.

        Raises:
            ConfigError: it isn't as it was written, is of another version of the program, or of
                another model, or keeps no anchor where `kl_coeff` isn't 0.
            LearnersLostError: a learner failed meanwhile; it may be tried again.
        """
        path = local_path(path).absolute()
        if found := fault(path):
            raise ConfigError(f"{path} is not as it was written: {found}. Take another one.")
        progress = progress_of(path)
        kept = (path / LEARNERS / REFERENCE).is_dir()
        if self.config.kl_coeff > 0 and progress["anchored"] and not kept:
            raise ConfigError(
                f"{path} keeps no anchor to measure a KL by: it was written with kl_coeff 0. Set "
                f"that to 0 again ({self.config.kl_coeff:g} now), or begin another run."
            )
        dropped = self.rollout_queue.forget()  # before the learners: their weights are gone
        if self.learners.lost:
            self._rebuild_learners()
        self._set_progress(progress, dropped)
        self.learners("load_checkpoint", str(path / LEARNERS))
        self.best_epoch.restore(path)
        self._sync_weights()
        self.learners.back()

    def start_over(self) -> None:
        """Goes back to the beginning, with new learners."""
        dropped = self.rollout_queue.forget()
        self._rebuild_learners()
        self._set_progress(self._first_state, dropped)
        self.best_epoch.clear()
        self._sync_weights()
        self.learners.back()

    def _rebuild_learners(self) -> None:
        self.learner_group = self.learners.rebuild()
        self.transfer = weight_transfer(self.config)  # the old one's sender is gone

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Tune's checkpoint of a trial: `save_to_path`, and the model as `save_model` writes it."""
        self.save_model(Path(checkpoint_dir) / MODEL)
        super().save_checkpoint(checkpoint_dir)

    def cleanup(self) -> None:
        if hasattr(self, "failures"):
            self.failures.close()  # what is still being sampled loses its actors now
        if hasattr(self, "rollout_queue"):
            self.rollout_queue.stop()
        if hasattr(self, "reward_group"):
            self.reward_group.stop()
        if hasattr(self, "runners"):
            self.runners.stop()
        super().cleanup()
