"""What the documents say of files and defaults is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from denoizarr.pipeline.config import JobConfig

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    links = re.findall(r"\]\(([^)#]+)\)", document.read_text())
    missing = [
        link for link in links if not link.startswith("http") and not (document.parent / link).exists()
    ]
    assert not missing


def test_the_tables_defaults_are_those_of_the_job():
    defaults = JobConfig.load({"input": "in", "output": "out"}).model_dump(mode="json")
    rows = re.findall(
        r"^\| `(\w+)\.(\w+)` \| ([^|]+) \|", (ROOT / "docs/job-file.md").read_text(), re.MULTILINE
    )
    stated = {
        (section, key): value.strip().strip("`")
        for section, key, value in rows
        if value.strip() and section in defaults  # the run folder's files have dots, too
    }
    assert len(stated) > 20
    for (section, key), value in stated.items():
        # coverage is the filter's own where the job says nothing.
        expected = 0.25 if key == "coverage" else defaults[section][key]
        assert str(yaml.safe_load(value)) == str(expected), f"{section}.{key}"


def test_the_readme_has_its_two_commands():
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert blocks[0].strip().endswith("denoizarr demo --out demo-out")
    assert blocks[1].strip().endswith("pytest -q")
    assert all(block.startswith("python3 -m venv ") for block in blocks[:2])
