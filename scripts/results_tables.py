"""Write the tables of README.md and docs/*.md from docs/results/*.json, so that no number in them is typed by hand.

A table stands between `<!-- results:NAME -->` and `<!-- /results -->`. Run after a measurement:

    python scripts/results_tables.py            # rewrite the tables
    python scripts/results_tables.py --check    # only say whether they are up to date
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_BLOCK = re.compile(r"(<!-- results:([\w-]+) -->\n).*?(<!-- /results -->)", re.DOTALL)
_MARKS = {True: "yes", False: "**no**", None: "–"}


def number(value: Any, unit: str = "") -> str:
    """``0.8123`` with unit ``%`` -> ``0.812 %``; anything that is not a number as it is."""
    if value is None:
        return "–"
    text = f"{value:.3g}" if isinstance(value, float) and abs(value) < 1000 else str(value)
    return f"{text} {unit}".strip()


def table(result: dict[str, Any]) -> str:
    """Markdown table of the rows of one results file, and a line that says where they come from."""
    lines = ["| what | measured | target | reached | setting |", "| --- | --- | --- | --- | --- |"]
    for row in result["rows"]:
        unit = row.get("unit") or ""
        cells = [
            row.get("name") or row.get("claim"),
            number(row.get("value", row.get("ours")), unit),
            number(row.get("target", row.get("paper")), unit),
            _MARKS[row.get("holds")],
            row.get("setting") or "",
        ]
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    origin = f"`{result['command']}`, seed {result['seed']}, {result['date']}, {machine(result['machine'])}."
    return "\n".join([*lines, "", f"Measured by {origin}", ""])


def machine(facts: Any) -> str:
    """The machine in a few words."""
    return ", ".join(f"{k} {v}" for k, v in facts.items()) if isinstance(facts, dict) else str(facts)


def render(text: str, folder: Path) -> str:
    """``text`` with every results block filled from ``folder``; one without a file says that nothing was measured."""

    def fill(match: re.Match[str]) -> str:
        path = folder / f"{match[2]}.json"
        body = f"Not measured yet (`docs/results/{path.name}`).\n"
        if path.exists():
            body = table(json.loads(path.read_text()))
        return f"{match[1]}{body}{match[3]}"

    return _BLOCK.sub(fill, text)


def main() -> int:
    """Command line; the exit status is 1 if `--check` finds a table that is out of date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    old = 0
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        before = path.read_text()
        after = render(before, ROOT / "docs/results")
        if after != before:
            old += 1
            print(f"{path.relative_to(ROOT)} {'is out of date' if check else 'rewritten'}")
            if not check:
                path.write_text(after)
    return int(check and old > 0)


if __name__ == "__main__":
    sys.exit(main())
