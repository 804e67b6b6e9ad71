"""What docs/metrics.md says nothing of."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs" / "metrics.md"
STANDS_FOR = {"KIND": "(rank|reflect|rank_again)", "_N": r"_\d+"}


def undocumented(lines: Iterable[Mapping[str, Any]]) -> set[str]:
    """Keys of metrics.jsonl's lines that no row of a table in docs/metrics.md begins with."""
    rows = re.findall(r"^\| (`.*?) \| ", DOCS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    patterns = [key for row in rows for key in re.findall("`(.*?)`", row)]
    for name, stands_for in STANDS_FOR.items():
        patterns = [pattern.replace(name, stands_for) for pattern in patterns]
    known = re.compile("|".join(patterns))
    return {key for line in lines for key in line if not known.fullmatch(key)}
