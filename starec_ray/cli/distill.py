"""`starec distill`: traces for the anchor from a teacher."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from starec_ray.distill.settings import (
    DistillSettings,
    EndpointSettings,
    LocalSettings,
    PromptSettings,
    SamplingSettings,
    TeacherSettings,
    TemplateSettings,
)
from starec_ray.errors import ConfigError
from starec_ray.files import local_path

ENDPOINT, LOCAL, TEMPLATE = "Endpoint", "Local model", "Template"
MOST_SEED = 2**63 - 1  # that a column of the table holds


def distill(
    data: Annotated[Path, typer.Option(help="A prepared data folder.")],
    out: Annotated[
        Path, typer.Option(help="Folder for the traces; an interrupted run resumes there.")
    ],
    teacher: Annotated[
        str,
        typer.Option(
            help="'template'; with --base-url, a model of that endpoint; otherwise a model "
            "(Hugging Face id, folder, embedded name) to run in vLLM on the Ray cluster."
        ),
    ],
    users: Annotated[
        int, typer.Option(min=1, help="Training users to ask about.")
    ] = DistillSettings.users,
    min_score: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Lowest NDCG at which a ranking is kept (0.5: third place)."
        ),
    ] = DistillSettings.min_score,
    rethinks: Annotated[
        int, typer.Option(min=0, max=9, help="How often a flawed answer is sent back.")
    ] = DistillSettings.rethinks,
    reply_format: Annotated[
        str, typer.Option(help="How the teacher writes rankings: titles or grades.")
    ] = PromptSettings.reply_format,
    guided: Annotated[
        bool,
        typer.Option(
            "--guided",
            help="Hold replies to their form with structured outputs (vLLM), for teachers too weak "
            "to keep to it themselves; not for models that reason on their own.",
        ),
    ] = DistillSettings.guided,
    history_shown: Annotated[
        int, typer.Option(min=0, help="Newest history items in a prompt.")
    ] = PromptSettings.history_shown,
    max_prompt_tokens: Annotated[
        int, typer.Option(min=256, help="Longest prompt in tokens, taken as 3 characters each.")
    ] = PromptSettings.max_prompt_tokens,
    max_tokens: Annotated[
        int, typer.Option(min=16, help="Longest answer in tokens, thoughts included.")
    ] = SamplingSettings.max_tokens,
    temperature: Annotated[
        float, typer.Option(min=0, max=2, help="Sampling temperature; 0 is greedy.")
    ] = SamplingSettings.temperature,
    base_url: Annotated[
        str,
        typer.Option(
            help="An OpenAI-compatible endpoint: https://HOST/v1.", rich_help_panel=ENDPOINT
        ),
    ] = "",
    key_variable: Annotated[
        str,
        typer.Option(help="Environment variable that holds the key.", rich_help_panel=ENDPOINT),
    ] = EndpointSettings.key_variable,
    concurrency: Annotated[
        int, typer.Option(min=1, help="Concurrent requests.", rich_help_panel=ENDPOINT)
    ] = EndpointSettings.concurrency,
    requests_per_minute: Annotated[
        int, typer.Option(min=0, help="Rate limit; 0: none.", rich_help_panel=ENDPOINT)
    ] = EndpointSettings.requests_per_minute,
    tries: Annotated[
        int,
        typer.Option(min=1, help="Tries per request before giving up.", rich_help_panel=ENDPOINT),
    ] = EndpointSettings.tries,
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds to wait for one answer.", rich_help_panel=ENDPOINT)
    ] = EndpointSettings.timeout_s,
    budget_requests: Annotated[
        int,
        typer.Option(
            min=0,
            help="Stop this call after so many requests; 0: no limit.",
            rich_help_panel=ENDPOINT,
        ),
    ] = EndpointSettings.budget_requests,
    budget_tokens: Annotated[
        int,
        typer.Option(
            min=0,
            help="Stop this call after so many tokens; 0: no limit.",
            rich_help_panel=ENDPOINT,
        ),
    ] = EndpointSettings.budget_tokens,
    extra_body: Annotated[
        str,
        typer.Option(
            help="JSON object of further request fields that the endpoint knows, or of others in "
            "place of temperature, seed and max_tokens; null leaves one out.",
            rich_help_panel=ENDPOINT,
        ),
    ] = "{}",
    engines: Annotated[
        int,
        typer.Option(min=1, help="vLLM engines across the cluster.", rich_help_panel=LOCAL),
    ] = LocalSettings.engines,
    gpus_per_engine: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="0 runs on CPU cores. Default: 1 if the cluster has GPUs.",
            rich_help_panel=LOCAL,
        ),
    ] = LocalSettings.gpus_per_engine,
    cpus_per_engine: Annotated[
        int, typer.Option(min=1, help="CPU cores of an engine without GPUs.", rich_help_panel=LOCAL)
    ] = LocalSettings.cpus_per_engine,
    engine_settings: Annotated[
        str,
        typer.Option(
            help="JSON object of further vLLM engine arguments: '{\"max_model_len\": 8192}'.",
            rich_help_panel=LOCAL,
        ),
    ] = "{}",
    popularity_weight: Annotated[
        float,
        typer.Option(
            min=0,
            help="Weight of popularity relative to likeness to the history.",
            rich_help_panel=TEMPLATE,
        ),
    ] = TemplateSettings.popularity_weight,
    seed: Annotated[
        int,
        typer.Option(min=0, max=MOST_SEED, help="Seed for choosing users and for each request."),
    ] = DistillSettings.seed,
) -> None:
    """Let a teacher play the agent's loop on training users, and keep what is sound.

    The teacher summarizes histories, ranks, reflects on its real mistakes, and
    ranks again. Its answers are screened (form, then NDCG); a flawed one goes
    back with its fault named. OUT then holds traces.parquet (for `starec train …
    --traces OUT/traces.parquet`), report.json, report.png, and journal.jsonl:
    when the command is started again, nothing already answered is asked twice,
    with another budget or number of users neither. Another --temperature,
    --max-tokens, --extra-body, --engine-settings or --guided asks everything anew.
    """
    from starec_ray.agent.formats import FORMATS
    from starec_ray.jobs.distill import distill as job

    if reply_format not in FORMATS:
        raise ConfigError(f"--reply-format {reply_format!r}: choose {' or '.join(FORMATS)}.")
    local_path(out)
    if base_url and not base_url.startswith(("http://", "https://")):
        raise ConfigError(f"--base-url {base_url!r} is no address: write http://HOST:PORT/v1.")
    more_fields = _json_object("--extra-body", extra_body)
    more_settings = _json_object("--engine-settings", engine_settings)
    asked: TeacherSettings
    if teacher == "template":
        asked = TemplateSettings(popularity_weight)
    elif base_url:
        asked = EndpointSettings(
            base_url=base_url,
            model=teacher,
            key_variable=key_variable,
            temperature=temperature,
            max_tokens=max_tokens,
            concurrency=concurrency,
            requests_per_minute=requests_per_minute,
            tries=tries,
            timeout_s=timeout,
            budget_requests=budget_requests,
            budget_tokens=budget_tokens,
            extra_body=more_fields,
        )
    else:
        asked = LocalSettings(
            model=teacher,
            temperature=temperature,
            max_tokens=max_tokens,
            engines=engines,
            gpus_per_engine=gpus_per_engine,
            cpus_per_engine=cpus_per_engine,
            engine_settings=more_settings,
        )
    prompts = PromptSettings(reply_format, history_shown, max_prompt_tokens)
    settings = DistillSettings(users, min_score, rethinks, seed, guided)
    job(data, out, asked, prompts, settings, Console())


def _json_object(option: str, text: str) -> dict:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{option} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{option} is no JSON object: write '{{\"name\": value}}'.")
    return value
