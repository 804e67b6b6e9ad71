"""What differs between how something was begun and how it is to go on."""

from collections.abc import Mapping
from typing import Any

MODEL = "model.name"
KL = "training.kl_coeff"


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Of settings, "section.key" → value, those that have another value now, one text each; what
    either doesn't know is no change."""
    return [
        f"{key} was {before[key]!r} and is {value!r}"
        for key, value in now.items()
        if key in before and before[key] != value
    ]


def changes_of_a_run(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`changes`, but for those that a run may make as it goes on: a model's folder may lie
    elsewhere (what is in it is compared by `starec_ray.config.identity`), and the KL may have
    another weight, unless that was 0: no anchor was kept to measure it by."""
    free = {KL} if before.get(KL) else set()
    if any(str(settings.get(MODEL)).startswith(("/", "~")) for settings in (before, now)):
        free.add(MODEL)
    return changes(before, {key: value for key, value in now.items() if key not in free})
