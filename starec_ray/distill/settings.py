"""What `starec distill` can be told, and what holds where nothing is said."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class PromptSettings:
    """How a teacher is shown what the agent knows, and is to answer."""

    reply_format: str = "titles"  # one of `agent.formats.FORMATS`
    history_shown: int = 20  # newest items in a prompt
    max_prompt_tokens: int = 8192


@dataclass(frozen=True)
class DistillSettings:
    """What is asked, and what is kept."""

    users: int = 200
    min_score: float = 0.5
    rethinks: int = 2
    seed: int = 0
    guided: bool = False  # replies keep to a grammar


@dataclass(frozen=True)
class TemplateSettings:
    """How the template teacher grades."""

    popularity_weight: float = 0.3


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How a language model is asked, wherever it runs."""

    temperature: float = 0.6
    max_tokens: int = 4096  # of thoughts and answer together


@dataclass(frozen=True)
class EndpointSettings(SamplingSettings):
    """How an endpoint is asked.

    `budget_requests` and `budget_tokens` hold for one call of the command; 0 is without limit.
    Requests under way when a token budget is reached are still waited for. `extra_body` are more
    fields of a request, or others in place of those that it has; None leaves a field out.
    """

    base_url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"  # the environment variable that holds the key
    concurrency: int = 8
    requests_per_minute: int = 0
    tries: int = 6
    longest_wait_s: float = 60.0
    timeout_s: float = 300.0
    budget_requests: int = 0
    budget_tokens: int = 0
    extra_body: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LocalSettings(SamplingSettings):
    """How a local model is run: `engines` of vLLM, spread over the cluster.

    An engine has `gpus_per_engine` GPUs, or with 0 `cpus_per_engine` cores; None takes one GPU
    if the cluster has any.
    """

    model: str  # a Hugging Face id, a folder, or an embedded name
    engines: int = 1
    gpus_per_engine: int | None = None
    cpus_per_engine: int = 2
    batch_size: int = 16  # a batch's answers are kept when all of them are there
    engine_settings: dict[str, Any] = field(default_factory=dict)  # more of vLLM's own


TeacherSettings = EndpointSettings | LocalSettings | TemplateSettings
