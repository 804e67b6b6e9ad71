"""The sections of a configuration that RLlib doesn't have: data, model, anchor, rewards."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.models import MODEL_DEFAULTS
from ray.rllib.utils.from_config import NotProvided


class ModelSection(dict):
    """What `config.model` is: called, the section; read by RLlib, its legacy model defaults."""

    def __init__(self, section: Callable[..., "OwnSections"]) -> None:
        super().__init__(MODEL_DEFAULTS)
        self._section = section

    def __call__(self, **settings: Any) -> "OwnSections":
        return self._section(**settings)


class OwnSections(AlgorithmConfig):
    """Fluent setters; the fields and their defaults stand in `STARecConfig`."""

    data_path: str
    model_name: str

    def data(self, *, path: str | Path = NotProvided) -> Self:
        """Sets the prepared data.

        Args:
            path: a data folder that `starec data prepare` wrote.
        """
        if path is not NotProvided:
            # Under Tune it may be a domain.
            self.data_path = str(path) if isinstance(path, Path) else path
        return self

    @property
    def model(self) -> "ModelSection":
        """The section of the language model: `config.model(name=…, …)`, see `set_model`."""
        return ModelSection(self.set_model)

    def set_model(
        self,
        *,
        name: str = NotProvided,
        dtype: Literal["auto", "float32", "bfloat16"] = NotProvided,
        max_model_len: int = NotProvided,
        reply_format: str = NotProvided,
        think_before_ranking: bool = NotProvided,
        constrained_decoding: bool = NotProvided,
        item_attributes: Sequence[str] = NotProvided,
        history_shown: int = NotProvided,
        max_rank_tokens: int = NotProvided,
        max_reflect_tokens: int = NotProvided,
    ) -> Self:
        """Sets the language model and how the agent talks to it.

        Args:
            name: the language model: an embedded one, a Hugging Face id, or a local folder.
            dtype: dtype of the model: "auto" takes bfloat16 where the hardware is fast at it, else
                float32.
            max_model_len: context window in tokens, for prompt and reply together.
            reply_format: how a ranking is written: "titles" lists the candidates best first,
                "grades" adds a digit to each in the order shown.
            think_before_ranking: ask for a short rationale before each ranking.
            constrained_decoding: constrain sampling so that every ranking is whole; only for fast
                thinking without a rationale.
            item_attributes: what a prompt shows of an item besides its title: any of year, tags,
                people, popularity and likeness (to what the user liked lately).
            history_shown: newest history items shown in a prompt; the summary covers the rest.
            max_rank_tokens: longest reply of fast thinking, in tokens.
            max_reflect_tokens: longest reply of slow thinking, in tokens.
        """
        if name is not NotProvided:
            self.model_name = name
        return self._take(
            dtype=dtype,
            max_model_len=max_model_len,
            reply_format=reply_format,
            think_before_ranking=think_before_ranking,
            constrained_decoding=constrained_decoding,
            item_attributes=item_attributes,
            history_shown=history_shown,
            max_rank_tokens=max_rank_tokens,
            max_reflect_tokens=max_reflect_tokens,
        )

    def anchor(
        self,
        *,
        traces: Sequence[str] = NotProvided,
        trace_weights: dict = NotProvided,
        num_traces: int = NotProvided,
        held_out_trace_share: float = NotProvided,
        anchor_validation_cases: int = NotProvided,
        reflect_trace_share: float = NotProvided,
        teacher_popularity_weight: float = NotProvided,
        anchor_epochs: int = NotProvided,
        anchor_batch_size: int = NotProvided,
        anchor_lr: float = NotProvided,
        anchor_updates_per_iteration: int = NotProvided,
    ) -> Self:
        """Sets stage one, the anchor: supervised training on a teacher's traces.

        Args:
            traces: sources of traces: Parquet files of `schemas.TRACES`, as `starec distill` writes
                them; "bundled", the set that comes with the package, for the demo's data;
                "template", the template teacher, which is used if no source is named. Kinds may
                follow a source, which then gives only those: "bundled:reflect,summarize".
            trace_weights: loss weight of each kind of trace (rank, reflect, summarize); a kind not
                named has 1, and 0 leaves it out.
            num_traces: maximum number of traces, taken from each source in turn.
            held_out_trace_share: share of the traces' users to hold out; the NLL of their traces is
                measured after each epoch.
            anchor_validation_cases: validation users to rank for after each epoch, to keep the
                epoch with the best NDCG@10; with 0, the held-out NLL decides.
            reflect_trace_share: share of the template teacher's traces that are reflections.
            teacher_popularity_weight: how much the template teacher weighs popularity, relative to
                likeness to the history.
            anchor_epochs: passes over the traces in stage one; 0 skips the stage.
            anchor_batch_size: traces per optimiser step.
            anchor_lr: learning rate of stage one.
            anchor_updates_per_iteration: optimiser steps of stage one per `train()` call.
        """
        return self._take(
            traces=traces,
            trace_weights=trace_weights,
            num_traces=num_traces,
            held_out_trace_share=held_out_trace_share,
            anchor_validation_cases=anchor_validation_cases,
            reflect_trace_share=reflect_trace_share,
            teacher_popularity_weight=teacher_popularity_weight,
            anchor_epochs=anchor_epochs,
            anchor_batch_size=anchor_batch_size,
            anchor_lr=anchor_lr,
            anchor_updates_per_iteration=anchor_updates_per_iteration,
        )

    def rewards(
        self,
        *,
        reward_shape: str = NotProvided,
        credit_assignment: str = NotProvided,
        num_reward_actors: int = NotProvided,
    ) -> Self:
        """Sets the rewards from held-out preferences.

        Args:
            reward_shape: how the target's rank becomes a reward: in the paper's tiers, or
                smoothly, as reciprocal rank or NDCG; a malformed ranking always earns -1.
            credit_assignment: "reply" gives all tokens of a reply the same advantage, as GRPO
                does; "candidate", for constrained grades only, credits each grade with what it
                added to the reward.
            num_reward_actors: actors that hold the targets and score rankings.
        """
        return self._take(
            reward_shape=reward_shape,
            credit_assignment=credit_assignment,
            num_reward_actors=num_reward_actors,
        )

    def update_from_dict(self, config_dict: dict) -> Self:
        """RLlib's, in whose dictionaries "model" may hold keys of this section."""
        given = {k: v for k, v in config_dict.items() if k != "model"}
        own = {k: v for k, v in config_dict.get("model", {}).items() if k not in MODEL_DEFAULTS}
        super().update_from_dict(given)
        return self.set_model(**own)

    def serialize(self) -> dict[str, Any]:
        """RLlib's, which reads its own model settings in it."""
        return self._serialize_dict(self.to_dict() | {"model": dict(MODEL_DEFAULTS)})

    def _take(self, **given: Any) -> Self:
        for name, value in given.items():
            if value is not NotProvided:
                setattr(self, name, value)
        return self
