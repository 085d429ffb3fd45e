"""The cards in ``datasets/``, generated from the manifest: ``python -m tinyml_edu.data.cards [--check]``."""

from __future__ import annotations

import argparse
from pathlib import Path

from .manifest import Entry, entries

_KINDS = {
    "embedded": "embedded: part of a dependency, no download",
    "made": "made: rendered by this package on first use and kept in the user's cache, no download",
    "real": "real: found in `$TINYML_EDU_DATA` or the user's cache, or downloaded",
}
_GENERATED = "<!-- Generated from tinyml_edu/data/manifest.toml by `python -m tinyml_edu.data.cards`. -->\n"


def render(entry: Entry) -> str:
    """Return the card of one data set as Markdown."""
    lines = [
        f"# {entry.title} (`{entry.name}`)",
        "",
        f"- **Kind**: {_KINDS[entry.kind]}",
        f"- **One example**: {'×'.join(map(str, entry.shape))} (H×W×C), uint8",
        f"- **Origin**: {entry.origin}",
        f"- **Licence**: {entry.licence}",
        f"- **Splits**: {_split_sizes(entry)}",
        f"- **How they were chosen**: {entry.rule}",
    ]
    if entry.parameters:
        defaults = ", ".join(f"`{key}={value}`" for key, value in entry.parameters.items())
        lines.append(f"- **Parameters of `data.load`**: {defaults}, and `size`, the examples of the split")
    if entry.stand_in:
        lines.append(f"- **Without network**: `data.load({entry.stand_in!r})` is the embedded stand-in")
    lines += [*_file_lines(entry), "", "```python", *_usage(entry), "```", ""]
    return "\n".join(lines)


def _split_sizes(entry: Entry) -> str:
    counts = ", ".join(f"{split} {count:,}" for split, count in entry.splits.items())
    if entry.kind == "real":
        return counts + " in the reduced copy; `len(data.load(...))` says how many were found"
    return counts + (" by default" if entry.kind == "made" else "")


def _file_lines(entry: Entry) -> list[str]:
    lines = []
    if entry.files or entry.originals:
        lines = ["", "| file | origin | digest |", "|---|---|---|"]
    for path, digest in entry.files.items():
        lines.append(f"| `{path}` | reduced copy, under `$TINYML_EDU_DATA` | sha256 `{digest}` |")
    for name, source in entry.originals.items():
        lines.append(f"| `{name}` | <{source['url']}> | md5 `{source['md5']}` |")
    return lines


def _usage(entry: Entry) -> list[str]:
    return ["from tinyml_edu import data", "", f'train = data.load("{entry.name}", "train")']


def render_index() -> str:
    """Return the table of all data sets as Markdown."""
    lines = [
        "# Data sets",
        "",
        "`data.load(name, split)` looks in `$TINYML_EDU_DATA`, then in the user's cache",
        "(`$TINYML_EDU_CACHE`), then downloads; `TINYML_EDU_OFFLINE=1` forbids the last.  Where a set is",
        "absent, the error names the embedded stand-in; nothing is switched silently.  The splits of real",
        "sets are those of the reduced copy; a download of the originals holds more.",
        "",
        "| name | what | kind | example | splits | licence |",
        "|---|---|---|---|---|---|",
    ]
    for entry in entries().values():
        shape = "×".join(map(str, entry.shape))
        counts = " / ".join(f"{n:,}" for n in entry.splits.values())
        name = f"[`{entry.name}`]({entry.name}.md)"
        lines.append(f"| {name} | {entry.title} | {entry.kind} | {shape} | {counts} | {entry.licence} |")
    return "\n".join([*lines, ""])


def files() -> dict[str, str]:
    """Return the text of every generated file by its name under ``datasets/``."""
    cards = {f"{entry.name}.md": _GENERATED + render(entry) for entry in entries().values()}
    return {"README.md": _GENERATED + render_index(), **cards}


def stale(folder: Path) -> list[str]:
    """Return the names of generated files that differ from what is in ``folder``, or are absent."""
    return [
        name
        for name, text in files().items()
        if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != text
    ]


def main(arguments: list[str] | None = None) -> int:
    """Write the cards, or with ``--check`` only say which are out of date (exit status 1)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parents[2] / "datasets")
    chosen = parser.parse_args(arguments)
    old = stale(chosen.folder)
    if chosen.check:
        for name in old:
            print(f"{chosen.folder / name} is out of date; run python -m tinyml_edu.data.cards")
        return int(bool(old))
    chosen.folder.mkdir(parents=True, exist_ok=True)
    for name in old:
        (chosen.folder / name).write_text(files()[name], encoding="utf-8")
        print(f"wrote {chosen.folder / name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
