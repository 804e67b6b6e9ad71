"""The README's tree of the house, held against the files."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
OF_ONE_KIND = {"sources", "cli", "weight_transfer"}
PACKAGES = ("starec_ray", "actors", "learners", "tune")


def test_the_tree_names_every_module_and_none_that_is_not_there():
    tree = (ROOT / "README.md").read_text(encoding="utf-8").split("## The house")[1]
    tree = tree.split("```")[1]
    named = set(re.findall(r"\b(\w+\.py)\b", tree))
    rooms = set(re.findall(r"^ *(\w+)/", tree, re.MULTILINE))
    modules = [
        path.relative_to(ROOT)
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
    ]
    # A line may stand for a room whose files are of one kind.
    assert not [m for m in modules if m.name not in named and m.parent.name not in OF_ONE_KIND]
    assert rooms >= OF_ONE_KIND
    elsewhere = {path.name for room in ("tests", "scripts") for path in (ROOT / room).glob("*.py")}
    assert named <= {module.name for module in modules} | elsewhere
