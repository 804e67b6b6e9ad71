"""The section `run`, which is the command's own."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from starec_ray.config.checks import Range


@dataclass(slots=True)
class RunSettings:
    """Sets what the command does around the algorithm.

    Attributes:
        seed: seed for everything random in a run.
        iterations: GRPO iterations of stage two.
        checkpoint_every: iterations between checkpoints, those of both stages counted together;
            there is always one after the anchor and one at the end. 0: only those.
        keep_checkpoints: how many of the newest checkpoints to keep, besides the best by
            `run.metric` if `evaluation.evaluation_interval` is set; 0 keeps all.
        checkpoint_storage: address (s3://bucket/folder, gs://…, anything that pyarrow or fsspec
            knows) for copies of the kept checkpoints; a run folder that has none resumes from them.
        evaluate: evaluate all policies on the test users at the end.
        evaluation_cases: test users to evaluate on; 0 takes all.
        evaluate_slow_thinking: evaluate with slow thinking too (about four times the work in all).
        metric: metric on validation users by which a sweep compares trials and a run chooses its
            best checkpoint.
        ray: arguments of `ray.init`, such as num_cpus, for the local Ray that starts if
            RAY_ADDRESS names no cluster.
    """

    seed: int = 0
    iterations: int = 100
    checkpoint_every: int = 10
    keep_checkpoints: int = 2
    checkpoint_storage: str = ""
    evaluate: bool = True
    evaluation_cases: int = 0
    evaluate_slow_thinking: bool = True
    metric: Literal["ndcg@1", "ndcg@5", "ndcg@10", "ndcg@20", "hr@10", "mrr"] = "ndcg@10"
    ray: dict = dataclasses.field(default_factory=dict)


RUN_RANGES = dict.fromkeys(
    ("iterations", "checkpoint_every", "keep_checkpoints", "evaluation_cases"),
    Range(0, whole=True),
)
