"""What the README says of the labs is what the labs say of themselves."""

from __future__ import annotations

import re
import tomllib

from tinyml_edu.grading import labs


def rows_of_labs(text: str) -> dict[str, tuple[int, int, str]]:
    """Return folder name -> (minutes, points, Colab link) from the README's table."""
    pattern = r"\| \[\d+ · [^\]]+\]\(labs/(\w+)/\1\.ipynb\) \| (\d+) \| (\d+) \|.*\[Colab\]\(([^)]+)\)"
    return {m[1]: (int(m[2]), int(m[3]), m[4]) for m in re.finditer(pattern, text)}


def test_the_table_of_labs_is_true(repository):
    project = tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["tinyml_edu"]
    base = f"https://colab.research.google.com/github/{project['repository']}/blob/{project['branch']}/labs"
    rows = rows_of_labs((repository / "README.md").read_text(encoding="utf-8"))
    facts = {r["lab"]: r for r in labs.summaries()}
    assert set(rows) == set(facts)
    for name, (minutes, points, link) in rows.items():
        assert (minutes, points) == (facts[name]["minutes"], facts[name]["points"])
        assert link == f"{base}/{name}/{name}.ipynb"


def test_the_commands_of_the_readme_exist(repository):
    text = (repository / "README.md").read_text(encoding="utf-8")
    makefile = (repository / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    assert set(re.findall(r"`?make (?:[A-Z_]+=\S+ )?([a-z][a-z-]+)", text)) <= targets | {"alone"}
