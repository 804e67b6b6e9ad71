"""The reference of settings says what the configuration really takes."""

import math
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from starec_ray.cli import app
from starec_ray.config.checks import RANGES
from starec_ray.config.fields import attribute_of
from starec_ray.config.recipe import build, resolved_sections
from starec_ray.config.reference import as_markdown, settings
from starec_ray.config.run_settings import RUN_RANGES
from starec_ray.errors import ConfigError

DOCS = Path(__file__).parents[2] / "docs" / "settings.md"


def test_every_key_of_a_recipe_is_explained():
    keys = {(section, key) for section, ks in resolved_sections(build({})).items() for key in ks}
    found = settings()
    assert {(one.section, one.key) for one in found} == keys
    assert not [one.name for one in found if not one.text or "<" in one.allowed]


@pytest.mark.parametrize("field", [*RANGES, *RUN_RANGES])
def test_the_ends_of_a_range_are_allowed_where_it_says_so(field):
    [setting] = [one for one in settings() if attribute_of(one.name) == field]
    allowed = (RANGES | RUN_RANGES)[field]
    assert setting.allowed.endswith(str(allowed))
    number = int if setting.allowed.startswith("whole") else float
    for end, is_open in ((allowed.low, allowed.open_low), (allowed.high, allowed.open_high)):
        if not math.isinf(end):
            told = refusal({setting.section: {setting.key: number(end)}})
            assert (f"it must be {allowed}" in told) == is_open
    below = number(-1 if allowed.low == 0 else 0)
    told = refusal({setting.section: {setting.key: below}})
    assert f"{field} is {below}; it must be {allowed}" in told


def refusal(sections: dict) -> str:
    """Why a recipe is refused; "" if it isn't."""
    try:
        build(sections)
    except ConfigError as error:
        return str(error)
    return ""


def test_the_defaults_told_are_those_used():
    told: dict = {}
    for one in settings():
        told.setdefault(one.section, {})[one.key] = yaml.safe_load(one.default)
    assert resolved_sections(build(told)) == resolved_sections(build({}))


def test_the_documentation_is_the_reference_of_now():
    assert DOCS.read_text(encoding="utf-8") == as_markdown(), (
        "write it anew: starec settings --markdown > docs/settings.md"
    )


def test_the_command_finds_settings_by_a_word_of_their_meaning():
    shown = CliRunner().invoke(app, ["settings", "importance sampling"])
    assert shown.exit_code == 0
    assert "max_staleness = 0" in shown.output and "ratio_cap" in shown.output
    assert "zero_stage" not in shown.output
