"""Write the tables of README.md and docs/*.md from docs/results/*.json, so that no number in them is typed by hand.

A table stands between `<!-- results:NAME -->` and `<!-- /results:NAME -->`; `<!-- results:NAME PATTERN -->` takes only the rows whose
name the pattern (a regular expression) is found in. Run after a measurement:

    python scripts/results_tables.py            # rewrite the tables
    python scripts/results_tables.py --check    # only say whether they are up to date
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it works in a clone without an installation

from eval.report import markdown_table, read_results  # noqa: E402

_BLOCK = re.compile(r"(<!-- results:([\w-]+)(?: ([^\n]+))? -->\n).*?(<!-- /results:\2 -->)", re.DOTALL)


def origin(result: dict[str, Any]) -> str:
    """Where the numbers come from, in one sentence."""
    facts = result["machine"]
    machine = f"{facts.get('cpu')}, {facts.get('cores')} cores" if isinstance(facts, dict) else str(facts)
    return f"Measured by `{result['command']}`, seed {result['seed']}, {result['date'][:10]}, on {machine}."


def render(text: str, folder: Path) -> str:
    """``text`` with every results block filled from ``folder``; one without a file says that nothing was measured."""

    def fill(match: re.Match[str]) -> str:
        path = folder / f"{match[2]}.json"
        body = f"Not measured yet (`docs/results/{path.name}`)."
        if path.exists():
            result = read_results(path)
            body = f"{markdown_table(result, only=match[3])}\n\n{origin(result)}"
        return f"{match[1]}{body}\n{match[4]}"

    return _BLOCK.sub(fill, text)


def main() -> int:
    """Command line; the exit status is 1 if `--check` finds a table that is out of date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    old = 0
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        before = path.read_text(encoding="utf-8")
        after = render(before, ROOT / "docs/results")
        if after != before:
            old += 1
            print(f"{path.relative_to(ROOT)} {'is out of date' if check else 'rewritten'}")
            if not check:
                path.write_text(after, encoding="utf-8")
    return int(check and old > 0)


if __name__ == "__main__":
    sys.exit(main())
