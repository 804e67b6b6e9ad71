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
            path: a folder that `starec data prepare` wrote.
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
        """Sets the language model, and how the agent speaks with it.

        Args:
            name: an embedded model, a Hugging Face id, or a local folder.
            dtype: "auto" takes bfloat16 where the hardware is fast at it, else float32.
            max_model_len: window in tokens, prompt and reply together.
            reply_format: how a ranking is written: "titles" lists the candidates best first,
                "grades" joins a digit to each in the order shown.
            think_before_ranking: ask for a short rationale before the ranking.
            constrained_decoding: keep rankings whole while they are sampled; for fast thinking
                without a rationale.
            item_attributes: what a prompt shows of an item beside its title, of year, tags,
                people, popularity and likeness (to what the user liked lately).
            history_shown: newest history items in a prompt; the summary covers the rest.
            max_rank_tokens: longest reply of fast thinking.
            max_reflect_tokens: longest reply of slow thinking.
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
        """Sets stage one: supervised learning of a teacher's traces.

        Args:
            traces: sources: Parquet files of `schemas.TRACES`, as `starec distill` writes them;
                "bundled", the set that comes with the package, for the demo's data; "template",
                the template teacher, who is the only one where none is named. Kinds may stand
                behind a source, which gives no others then: "bundled:reflect,summarize".
            trace_weights: weight in the loss of each kind (rank, reflect, summarize); 1 where
                one isn't named, 0 leaves it out.
            num_traces: how many traces to take (at most those there are), of each source in
                turn.
            held_out_trace_share: share of the traces' users to hold out; their NLL is measured
                after each epoch.
            anchor_validation_cases: validation users to rank for after each epoch; the best
                epoch is kept, by NDCG@10, without these cases by the held-out NLL.
            reflect_trace_share: share of the template teacher's traces that are reflections.
            teacher_popularity_weight: how much the template teacher looks at popularity beside
                likeness to the history.
            anchor_epochs: passes over the traces; 0 skips the stage.
            anchor_batch_size: traces in one optimiser step.
            anchor_lr: learning rate of this stage.
            anchor_updates_per_iteration: optimiser steps in one `train()` call.
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
                smoothly, as reciprocal rank or NDCG; a malformed ranking earns -1 in each.
            credit_assignment: "reply" gives all tokens of a reply its advantage, as GRPO does;
                "candidate", for constrained grades, gives each grade what it added to the
                reward.
            num_reward_actors: actors that hold the targets and score.
        """
        return self._take(
            reward_shape=reward_shape,
            credit_assignment=credit_assignment,
            num_reward_actors=num_reward_actors,
        )

    def _take(self, **given: Any) -> Self:
        for name, value in given.items():
            if value is not NotProvided:
                setattr(self, name, value)
        return self
