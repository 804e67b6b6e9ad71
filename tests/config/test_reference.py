"""The reference of settings says what the configuration really takes."""

from pathlib import Path

import yaml
from typer.testing import CliRunner

from starec_ray.cli import app
from starec_ray.config.fields import known_fields
from starec_ray.config.recipe import build, resolved_sections
from starec_ray.config.reference import as_markdown, settings

DOCS = Path(__file__).parents[2] / "docs" / "settings.md"


def test_every_key_of_a_recipe_is_explained():
    found = settings()
    assert [(one.section, one.key) for one in found] == [
        (section, key) for section, keys in known_fields().items() for key in keys
    ]
    assert not [one.name for one in found if not one.text or "<" in one.may_be]


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
