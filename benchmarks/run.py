"""Measure an area and write its numbers as JSON and Markdown.

    python benchmarks/run.py AREA [--repeats N] [--out DIR] [--only WORDS] [--set NAME=VALUE ...]

Areas are the modules in ``benchmarks/areas``; ``docs/benchmarks.md`` says what each means.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path

from harness import HERE, Place, machine, markdown, run_group, without_nan


def main() -> int:
    areas = sorted(p.stem for p in (HERE / "areas").glob("*.py") if p.stem != "__init__")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("area", choices=areas)
    parser.add_argument("--repeats", type=int, default=5, help="rounds in which all sides take their turn")
    parser.add_argument("--only", default="", help="run the groups whose title contains this")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="an option of the area"
    )
    parser.add_argument("--out", type=Path, default=HERE / "results", help="for AREA.json and AREA.md")
    parser.add_argument(
        "--scratch", type=Path, default=HERE / ".scratch", help="for images; kept between runs"
    )
    parser.add_argument("--peers", type=Path, default=HERE / ".peers", help="where install_peers.py put them")
    arguments = parser.parse_args()

    sys.path.insert(1, str(HERE.parent))  # for the fixtures in tests/
    area = import_module(f"areas.{arguments.area}")
    options = dict(area.OPTIONS)
    for setting in arguments.set:
        name, _, value = setting.partition("=")
        if name not in options:
            parser.error(f"{arguments.area} has no option {name}: it has {', '.join(options)}")
        options[name] = json.loads(value)
    folder = arguments.scratch.absolute() / arguments.area
    folder.mkdir(parents=True, exist_ok=True)
    if hasattr(area, "prepare"):
        area.prepare(options, folder)
    place = Place(folder, arguments.peers.absolute())
    groups = [g for g in area.groups(options, folder) if arguments.only in g.title]
    if not groups:
        parser.error(f"no group of {arguments.area} is called like {arguments.only!r}")
    measured = [run_group(arguments.area, group, place, arguments.repeats) for group in groups]

    arguments.out.mkdir(parents=True, exist_ok=True)
    record = {"area": arguments.area, "options": options, "machine": machine(), "groups": measured}
    (arguments.out / f"{arguments.area}.json").write_text(json.dumps(without_nan(record), indent=1) + "\n")
    table = markdown(arguments.area, measured, arguments.repeats)
    (arguments.out / f"{arguments.area}.md").write_text(table)
    print(table)
    return 1 if any(row["met"] is False for group in measured for row in group["rows"]) else 0


if __name__ == "__main__":
    sys.exit(main())
