"""STARecConfig: every setting of a run, in RLlib's fluent sections and this system's own."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, cast

import gymnasium
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.from_config import NotProvided
from ray.util.debug import log_once
from ray.util.placement_group import remove_placement_group

from actors.env_runner import VLLMEnvRunner
from learners.module import PlaceholderModule
from starec_ray.cluster.placement import learner_bundles, learners_together
from starec_ray.cluster.start_deadline import StartDeadline
from starec_ray.config.checks import check_fields
from starec_ray.config.sections import OwnSections
from starec_ray.errors import ConfigError
from starec_ray.models.engine_limits import check_engine
from starec_ray.models.resolve import check_chat_template, dtype_of, resolve_model
from starec_ray.schemas import TRACE_KINDS
from starec_ray.training.parallel_start import ParallelLearnerStart
from starec_ray.training.traces import TraceSource, trace_files

LEARNER_ACTOR = "_WrappedExecutable"  # Ray Train's wrapper of the learner's class


class STARecConfig(OwnSections):
    """The configuration of `STARec`.

    Sections of this system, in `OwnSections`: `data`, `model`, `anchor`, `rewards`. Sections of
    RLlib, with fields of this system added: `training`, `env_runners`, `learners`, `evaluation`,
    `fault_tolerance`.
    Every field is a plain attribute with the name of the section's argument (except `data_path`
    and `model_name`), so that Tune can vary any of them.
    """

    def __init__(self, algo_class: type | None = None) -> None:
        if algo_class is None:
            from starec_ray.algorithm import STARec  # the algorithm imports this module

            algo_class = STARec
        super().__init__(algo_class)

        # .data()
        self.data_path = ""
        # .model()
        self.model_name = "smollm2-135m-instruct"
        self.dtype = "auto"
        self.max_model_len = 2048
        self.reply_format = "grades"
        self.think_before_ranking = True
        self.constrained_decoding = False
        self.item_attributes: Sequence[str] = ("year", "tags", "popularity")
        self.history_shown = 10
        self.max_rank_tokens = 256
        self.max_reflect_tokens = 128
        # .anchor()
        self.traces: Sequence[str] = ()
        self.trace_weights: dict = {}
        self.num_traces = 1000
        self.held_out_trace_share = 0.1
        self.anchor_validation_cases = 0
        self.reflect_trace_share = 0.25
        self.teacher_popularity_weight = 0.3
        self.anchor_epochs = 1
        self.anchor_batch_size = 16
        self.anchor_lr = 1e-4
        self.anchor_updates_per_iteration = 8
        # .rewards()
        self.reward_shape = "tiers"
        self.credit_assignment = "reply"
        self.num_reward_actors = 1
        # .training()
        self.lr = 1e-6
        self.cases_per_iteration = 64
        self.group_size = 8
        self.reflect_share = 1.0
        self.temperature = 1.0
        self.kl_coeff = 1e-3
        self.clip_low = 0.2
        self.clip_high = 0.2
        self.max_staleness = 0
        self.ratio_cap = 2.0
        self.grad_clip = 1.0
        self.weight_decay = 0.0
        self.warmup_steps = 0
        # .env_runners()
        self.num_env_runners = 1
        self.kv_cache_gib = 1.0
        self.gpu_memory_utilization = 0.85
        self.tensor_parallel_size = 1
        self.max_num_seqs = 64
        self.weight_transfer = "object_store"
        self.sleep_while_learning = False
        self.compile_engine = False
        # .learners()
        self.num_learners = 1
        self.num_cpus_per_learner = 1
        self.zero_stage = 2
        self.micro_batch_tokens = 4096
        self.gradient_checkpointing = False
        # .evaluation()
        self.evaluation_interval = 0
        self.validation_cases = 100
        # .fault_tolerance()
        self.start_timeout_s = 600.0
        self.sample_timeout_s = 1800.0
        self.update_timeout_s = 1800.0
        self.reward_timeout_s = 60.0
        self.transfer_timeout_s = 300.0
        self.storage_timeout_s = 300.0
        self.restart_failed_env_runners = True
        self.max_failures = 20
        self.failure_window_s = 3600.0
        self.max_skipped_steps = 3
        self.max_kl = 0.0
        self.max_grad_norm = 0.0
        self.min_entropy = 0.0

        # What RLlib needs to know of an agent that reads and writes text.
        self.seed: int = 0
        self.log_sys_usage = False  # the metrics hold each actor's memory
        self.env_runner_cls = VLLMEnvRunner
        self.create_local_env_runner = False
        self.observation_space = gymnasium.spaces.Text(1_000_000)
        self.action_space = gymnasium.spaces.Text(1_000_000)
        self._dont_auto_sync_env_runner_states = True

    def training(
        self,
        *,
        cases_per_iteration: int = NotProvided,
        group_size: int = NotProvided,
        reflect_share: float = NotProvided,
        temperature: float = NotProvided,
        kl_coeff: float = NotProvided,
        clip_low: float = NotProvided,
        clip_high: float = NotProvided,
        max_staleness: int = NotProvided,
        ratio_cap: float = NotProvided,
        weight_decay: float = NotProvided,
        warmup_steps: int = NotProvided,
        lr: float | list = NotProvided,
        grad_clip: float = NotProvided,
        **rllib: Any,
    ) -> Self:
        """Sets stage two: GRPO.

        Args:
            cases_per_iteration: ranking prompts per iteration, each with a group of rollouts.
            group_size: rollouts per prompt.
            reflect_share: share of an iteration's cases that go on to slow thinking; only cases
                whose user has a later one can.
            temperature: sampling temperature; log-probs are computed at it too.
            kl_coeff: weight of the KL to the frozen anchor; with 0 no copy of it is kept.
            clip_low: policy ratios below 1 - clip_low are clipped.
            clip_high: policy ratios above 1 + clip_high are clipped.
            max_staleness: how many updates the weights may make between the sampling of a rollout
                and the update that learns from it. 0 alternates sampling and training,
                strictly on-policy; from 1 on, the next iterations are sampled while one trains,
                and truncated importance sampling replaces the clipped policy loss.
            ratio_cap: largest weight of a token under truncated importance sampling.
            weight_decay: AdamW's weight decay, in both stages.
            warmup_steps: optimiser steps of linear warm-up, in each stage.
            lr: learning rate of stage two: a number above 0, or a schedule [[step, value], …] that
                begins at step 0, interpolated linearly.
            grad_clip: largest global gradient norm; larger gradients are scaled down to it.
            **rllib: further arguments of RLlib's `training()`.
        """
        super().training(lr=lr, grad_clip=grad_clip, **rllib)
        return self._take(
            cases_per_iteration=cases_per_iteration,
            group_size=group_size,
            reflect_share=reflect_share,
            temperature=temperature,
            kl_coeff=kl_coeff,
            clip_low=clip_low,
            clip_high=clip_high,
            max_staleness=max_staleness,
            ratio_cap=ratio_cap,
            weight_decay=weight_decay,
            warmup_steps=warmup_steps,
        )

    def env_runners(
        self,
        *,
        kv_cache_gib: float = NotProvided,
        gpu_memory_utilization: float = NotProvided,
        tensor_parallel_size: int = NotProvided,
        max_num_seqs: int = NotProvided,
        weight_transfer: str = NotProvided,
        sleep_while_learning: bool = NotProvided,
        compile_engine: bool = NotProvided,
        num_env_runners: int = NotProvided,
        num_cpus_per_env_runner: int = NotProvided,
        num_gpus_per_env_runner: float = NotProvided,
        custom_resources_per_env_runner: dict = NotProvided,
        sample_timeout_s: float = NotProvided,
        **rllib: Any,
    ) -> Self:
        """Sets the vLLM env runners.

        Args:
            kv_cache_gib: KV cache of an engine on a CPU, in GiB for each of its processes.
            gpu_memory_utilization: share of a GPU's memory that vLLM takes.
            tensor_parallel_size: GPUs that one engine spans; without GPUs, processes.
            max_num_seqs: sequences that an engine decodes at once.
            weight_transfer: how weights get from the learners to the env runners: "object_store"
                (everywhere), "nccl" (broadcast between GPUs), "gloo" (broadcast between CPUs).
            sleep_while_learning: free the engines' GPUs while the learners learn (vLLM's sleep
                mode), so that both can share one: give each env runner more than half of it (0.6)
                and each learner the rest (0.4), and Ray puts one of each on every GPU.
            compile_engine: have vLLM compile the model on a CPU too, as it does on GPUs: decoding
                is a quarter faster, but each start of an engine takes most of a minute longer.
            num_env_runners: vLLM engines, each an actor of its own.
            num_cpus_per_env_runner: CPU cores per env runner, and its threads if it has no GPU.
            num_gpus_per_env_runner: GPUs per env runner: its tensor_parallel_size, or a fraction
                of one GPU under `sleep_while_learning`; 0 runs it on CPU cores.
            custom_resources_per_env_runner: further Ray resources per env runner, such as
                {env_runner_node: 1} to place it on nodes with that resource.
            sample_timeout_s: deadline for one sampling call.
            **rllib: further arguments of RLlib's `env_runners()`.
        """
        super().env_runners(
            num_env_runners=num_env_runners,
            num_cpus_per_env_runner=num_cpus_per_env_runner,
            num_gpus_per_env_runner=num_gpus_per_env_runner,
            custom_resources_per_env_runner=custom_resources_per_env_runner,
            sample_timeout_s=sample_timeout_s,
            **rllib,
        )
        return self._take(
            kv_cache_gib=kv_cache_gib,
            gpu_memory_utilization=gpu_memory_utilization,
            tensor_parallel_size=tensor_parallel_size,
            max_num_seqs=max_num_seqs,
            weight_transfer=weight_transfer,
            sleep_while_learning=sleep_while_learning,
            compile_engine=compile_engine,
        )

    def learners(
        self,
        *,
        zero_stage: int = NotProvided,
        micro_batch_tokens: int = NotProvided,
        gradient_checkpointing: bool = NotProvided,
        num_learners: int = NotProvided,
        num_cpus_per_learner: float = NotProvided,
        num_gpus_per_learner: float = NotProvided,
        custom_resources_per_learner: dict = NotProvided,
        **rllib: Any,
    ) -> Self:
        """Sets the DeepSpeed learner group.

        Args:
            zero_stage: DeepSpeed's ZeRO stage: 1, 2 or 3.
            micro_batch_tokens: maximum number of tokens in one forward and backward pass on one
                learner; a prompt counts once for its group, unless it leaves too little room for
                all replies: the group is split then, and its prompt computed for each part.
            gradient_checkpointing: recompute activations: slower, but takes less memory.
            num_learners: learners (ranks), each an actor of its own; 0 learns in the driver.
            num_cpus_per_learner: CPU cores per learner, and its threads if it has no GPU.
            num_gpus_per_learner: GPUs per learner: 1, or a fraction under `sleep_while_learning`;
                0 runs it on CPU cores.
            custom_resources_per_learner: further Ray resources per learner, such as
                {learner_node: 1} to place it on nodes with that resource.
            **rllib: further arguments of RLlib's `learners()`.
        """
        super().learners(
            num_learners=num_learners,
            num_cpus_per_learner=num_cpus_per_learner,
            num_gpus_per_learner=num_gpus_per_learner,
            custom_resources_per_learner=custom_resources_per_learner,
            **rllib,
        )
        return self._take(
            zero_stage=zero_stage,
            micro_batch_tokens=micro_batch_tokens,
            gradient_checkpointing=gradient_checkpointing,
        )

    def evaluation(
        self,
        *,
        evaluation_interval: int = NotProvided,
        validation_cases: int = NotProvided,
        **rllib: Any,
    ) -> Self:
        """Sets the evaluation on validation users during training; the env runners do it.

        Args:
            evaluation_interval: `train()` calls, including the anchor's, between two evaluations
                on validation users; 0: never. The trials of a sweep are evaluated after each.
            validation_cases: validation users in each evaluation during training.
            **rllib: further arguments of RLlib's `evaluation()`.
        """
        never = evaluation_interval is None  # RLlib's word for it
        super().evaluation(evaluation_interval=0 if never else evaluation_interval, **rllib)
        return self._take(validation_cases=validation_cases)

    def fault_tolerance(
        self,
        *,
        start_timeout_s: float = NotProvided,
        update_timeout_s: float = NotProvided,
        reward_timeout_s: float = NotProvided,
        transfer_timeout_s: float = NotProvided,
        storage_timeout_s: float = NotProvided,
        max_failures: int = NotProvided,
        failure_window_s: float = NotProvided,
        max_skipped_steps: int = NotProvided,
        max_kl: float = NotProvided,
        max_grad_norm: float = NotProvided,
        min_entropy: float = NotProvided,
        **rllib: Any,
    ) -> Self:
        """Sets deadlines, in seconds, and the limits at which a run ends as failed or collapsed.

        Args:
            start_timeout_s: deadline for starts: for env runners to start or to come back; for
                learners to get their place on the cluster, and then again to start.
            update_timeout_s: deadline for one call to the learners, such as an optimiser step or a
                save.
            reward_timeout_s: deadline for scoring one batch; an actor that misses it is ended, and
                its share gets as long again.
            transfer_timeout_s: deadline for bringing weights to the env runners.
            storage_timeout_s: deadline for one answer from the checkpoint store
                (`run.checkpoint_storage`): to a request, or to 16 MiB of data.
            max_failures: how many actors, of all kinds together, may be lost within
                `failure_window_s`; one more ends the run.
            failure_window_s: window in seconds over which `max_failures` counts lost actors.
            max_skipped_steps: number of updates skipped in a row, because their gradient isn't
                finite, that ends the run.
            max_kl: largest KL to the anchor, in nats per token; a larger one ends the run. 0: no
                limit.
            max_grad_norm: largest gradient norm before clipping, in both stages; a larger one ends
                the run. 0: no limit.
            min_entropy: smallest entropy of the sampled tokens, in nats; a smaller one ends the
                run. 0: no limit.
            **rllib: further arguments of RLlib's `fault_tolerance()`: what happens to failed
                runners.
        """
        super().fault_tolerance(**rllib)
        return self._take(
            start_timeout_s=start_timeout_s,
            update_timeout_s=update_timeout_s,
            reward_timeout_s=reward_timeout_s,
            transfer_timeout_s=transfer_timeout_s,
            storage_timeout_s=storage_timeout_s,
            max_failures=max_failures,
            failure_window_s=failure_window_s,
            max_skipped_steps=max_skipped_steps,
            max_kl=max_kl,
            max_grad_norm=max_grad_norm,
            min_entropy=min_entropy,
        )

    # --- what RLlib asks of a configuration -------------------------------------------------

    def get_default_learner_class(self) -> type:
        # Reading a recipe takes no modelling code, which takes seconds to import.
        from learners.learner import DeepSpeedLearner

        return DeepSpeedLearner

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        return RLModuleSpec(module_class=PlaceholderModule)

    def build_learner_group(self, **given: Any) -> LearnerGroup:
        """RLlib's, with a deadline for the place and one for the start (both start_timeout_s); in a
        `ParallelLearnerStart` block the group that starts there.

        Raises:
            DeadlineError: says what is wanted, there and missing; nothing of the group is left.
        """
        if group := ParallelLearnerStart.group():
            return group
        if not self.num_learners:
            return super().build_learner_group(**given)
        place = learners_together(self)
        try:
            with StartDeadline(
                "learner",
                LEARNER_ACTOR,
                self.start_timeout_s,
                learner_bundles(self)[0],
                until_left=True,
            ):
                return super().build_learner_group(placement_group=place, **given)
        except BaseException:
            if place:  # what failed to start gives nothing back
                remove_placement_group(place)
            raise

    def resolve(self) -> Self:
        """Turns names into folders and "auto" into a dtype; called once before actors start.

        Sets `model_path` and `dtype`.

        Raises:
            ConfigError: if the model or the data can't be found, or no engine could hold the model
                with the window and the cache that are asked for.
        """
        self.check_inputs()
        # Actors may have other working folders.
        self.data_path = str(Path(self.data_path).absolute())
        self.traces = [str(TraceSource.of(name)) for name in self.traces]
        self.model_path = resolve_model(self.model_name)
        if Path(self.model_name).is_dir():
            self.model_name = self.model_path
        check_chat_template(self.model_path)
        self.dtype = dtype_of(self)
        check_engine(self, self.model_path, self.dtype)
        return self

    def check_inputs(self) -> None:
        """Raises ConfigError where a file or folder of the configuration isn't there."""
        if not (Path(self.data_path) / "manifest.json").is_file():
            folder = Path(self.data_path).absolute()
            raise ConfigError(
                f"data path {self.data_path!r} isn't a prepared data folder (no manifest.json in "
                f"{folder}). Make it: starec data prepare SOURCE --out "
                f"{shlex.quote(self.data_path)} (SOURCE: synthetic, which needs no files, or one "
                "that `starec data prepare --help` lists)."
            )
        for path in trace_files(self.traces):
            if not path.is_file():
                raise ConfigError(
                    f"there is no trace table {path}. A source of traces is a file, 'bundled' or "
                    f"'template', and may end in kinds of {', '.join(TRACE_KINDS)}: FILE:rank."
                )

    def validate(self) -> None:
        """Checks every field of this system, then RLlib's.

        Raises:
            ConfigError: names the field, its value, and what it may be.
        """
        if not self.in_evaluation:  # a copy of RLlib's, which it changes itself
            check_fields(self)
        # RLlib would advise, once, to leave its new API stack: there is no old one for this.
        log_once(f"{cast(type, self.algo_class).__name__}_on_new_api_stack")
        super().validate()
