"""The coverage of each part, from the JSON of coverage: printed, put into a page, held to a floor.

    python .ci/coverage_table.py coverage.json [docs/verification.md]

Python is held to `fail_under` of pyproject.toml, Cython to its own floor: neither hides the other.
"""

import json
import sys
import tomllib
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["coverage"]
FLOORS = {"Python": SETTINGS["report"]["fail_under"], "Cython": 86}
BEGIN, END = "<!-- coverage: begin -->", "<!-- coverage: end -->"


def part_of(file: str) -> tuple[str, str]:
    """The language of a file, and the folder or module that the table shows it with."""
    language = "Cython" if file.endswith((".pyx", ".pxd")) else "Python"
    package, *inner = Path(file).parts[Path(file).parts.index("site-packages") + 1 :]
    if package == "aiomultiprocess" and len(inner) == 1:
        return language, "the public modules"
    return language, f"`{package}`" if package == "amp_ext" else f"`{inner[0]}`"


def percent(covered: int, lines: int) -> float:
    return 100 * covered / lines


def main(measured: str, page: str = "") -> None:
    lines: Counter[tuple[str, str]] = Counter()
    covered: Counter[tuple[str, str]] = Counter()
    for file, found in json.loads(Path(measured).read_text())["files"].items():
        language, part = part_of(file)
        for row in ((language, part), (language, "**all**")):
            lines[row] += found["summary"]["num_statements"]
            covered[row] += found["summary"]["covered_lines"]
    table = ["| language | part | lines | covered |", "|---|---|---:|---:|"]
    table += [
        f"| {language} | {part} | {lines[language, part]:,} | "
        f"{percent(covered[language, part], lines[language, part]):.1f} % |"
        for language, part in sorted(lines)
    ]
    print("\n".join(table))
    if page:
        before, _, rest = Path(page).read_text().partition(BEGIN)
        after = rest.partition(END)[2]
        Path(page).write_text(f"{before}{BEGIN}\n" + "\n".join(table) + f"\n{END}{after}")
    for language, floor in FLOORS.items():
        found_here = percent(covered[language, "**all**"], lines[language, "**all**"])
        if found_here < floor:
            raise SystemExit(f"{language} is covered by {found_here:.1f} %, less than {floor} %")


if __name__ == "__main__":
    main(*sys.argv[1:])
