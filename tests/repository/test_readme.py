"""What the README says of the labs is what the labs say of themselves."""

from __future__ import annotations

import json
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


NETWORKS = {"keyword spotting": "kws", "visual wake words": "vww", "image classification": "ic"}


def figures_of_networks(text: str) -> dict[str, list[float]]:
    """Return the numbers of each row of the README's table of networks."""
    rows = {name: re.search(rf"^\| {name} \|(.*)\|$", text, re.MULTILINE) for name in NETWORKS}
    return {
        name: [float(cell.replace(",", "")) for cell in row[1].split("|")] if row else []
        for name, row in rows.items()
    }


def test_the_figures_of_networks_are_those_of_the_benchmark(repository):
    text = (repository / "README.md").read_text(encoding="utf-8")
    results = json.loads((repository / "docs" / "results.json").read_text())
    for name, found in figures_of_networks(text).items():
        speed, size = (
            {
                key: results[f"mcu.{NETWORKS[name]}.{goal}{key}"]["value"]
                for key in ("instructions", "of_cmsis_nn", "arena_bytes", "code_bytes", "weights_bytes")
            }
            for goal in ("", "size_exact.")
        )
        assert found == [
            speed["instructions"],
            speed["of_cmsis_nn"],
            speed["arena_bytes"],
            speed["code_bytes"] + speed["weights_bytes"],
            size["instructions"],
            size["code_bytes"] + size["weights_bytes"],
        ], name


def test_a_wrong_figure_is_seen():
    assert figures_of_networks("| keyword spotting | 1,000 | 0.5 |")["keyword spotting"] == [1000, 0.5]
