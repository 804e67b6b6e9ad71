"""Every setting with its type, default and meaning, read off the configuration itself."""

import typing
from dataclasses import dataclass
from typing import Any

from docstring_parser import parse

from starec_ray.config.checks import ONE_OF, RANGES
from starec_ray.config.fields import attribute_of, known_fields, section_method, type_words
from starec_ray.config.run_settings import RUN_RANGES, RunSettings
from starec_ray.config.starec_config import STARecConfig


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of a recipe.

    Attributes:
        section, key: where it stands in a recipe.
        allowed: its type and range, or its choices.
        default: as it would be written in a recipe.
        text: what it means.
    """

    section: str
    key: str
    allowed: str
    default: str
    text: str

    @property
    def name(self) -> str:
        """As an override names it: "training.lr"."""
        return f"{self.section}.{self.key}"


def settings(word: str = "") -> list[Setting]:
    """All of them in the order of their sections, or those with `word` in name or text."""
    config = STARecConfig()
    found = []
    for section, fields in known_fields().items():
        texts = _texts(RunSettings if section == "run" else section_method(section))
        owner = RunSettings() if section == "run" else config
        for key, wanted in fields.items():
            attribute = attribute_of(f"{section}.{key}")
            found.append(
                Setting(
                    section,
                    key,
                    _allowed(attribute, wanted),
                    _default(getattr(owner, attribute)),
                    texts[key],
                )
            )
    return [one for one in found if word.lower() in f"{one.name} {one.text}".lower()]


def summary(section: str) -> str:
    """What a section sets, in one sentence."""
    documented = RunSettings if section == "run" else section_method(section)
    return parse(documented.__doc__ or "").short_description or ""


def as_markdown() -> str:
    """The reference as docs/settings.md has it: a table a section."""
    lines = [
        "# Settings",
        "",
        "Every key of a recipe, by section; `starec settings WORD` searches them. In Python each",
        "is an argument of the section's method and an attribute of `STARecConfig`, which Tune can",
        "vary (two under another name: `data_path` and `model_name`); the section `run` is the",
        "command's own. Made by `starec settings --markdown`.",
    ]
    everything = settings()
    for section in known_fields():
        lines += ["", f"## {section}", "", summary(section), ""]
        lines += ["| key | default | allowed | meaning |", "|---|---|---|---|"]
        lines += [
            f"| `{one.key}` | `{one.default}` | {one.allowed} | {_cell(one.text)} |"
            for one in everything
            if one.section == section
        ]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _texts(documented: Any) -> dict[str, str]:
    """Argument → text of a Google-style docstring; one text may be that of several."""
    return {
        name.strip(): " ".join((param.description or "").split())
        for param in parse(documented.__doc__ or "").params
        for name in param.arg_name.split(",")
    }


def _allowed(attribute: str, wanted: Any) -> str:
    if choices := ONE_OF.get(attribute) or _literals(wanted):
        return ", ".join(f"`{choice}`" for choice in choices)
    names = type_words(wanted).replace("true or false", "`true`, `false`")
    numbers = (RANGES | RUN_RANGES).get(attribute)
    return f"{names}, {numbers}" if numbers else names


def _literals(wanted: Any) -> tuple[Any, ...]:
    return typing.get_args(wanted) if typing.get_origin(wanted) is typing.Literal else ()


def _default(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        value = list(value)
    return str(value) if value != "" else '""'
