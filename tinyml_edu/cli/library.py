"""``tinyml data`` and ``tinyml zoo``: what there is, and getting it."""

from __future__ import annotations

from typing import Annotated

import typer

from .output import JsonOption, console, table, write_json

data_app = typer.Typer(help="Data sets: list them, get one.", no_args_is_help=True)
zoo_app = typer.Typer(help="Trained checkpoints that come with the package.", no_args_is_help=True)


@data_app.command("list")
def data_list(json_file: JsonOption = None) -> None:
    """List the data sets and where each one would come from.

    Example: tinyml data list
    """
    from ..data import is_available, manifest

    rows = [
        {
            "name": e.name,
            "title": e.title,
            "kind": e.kind,
            "shape": list(e.shape),
            "splits": e.splits,
            "stand_in": e.stand_in,
            "available": is_available(e.name),
        }
        for e in manifest.entries().values()
    ]
    table(
        "Data sets",
        ["name", "what", "kind", "shape", "train", "validation", "test", "here"],
        [
            [
                *(r["name"], r["title"], r["kind"], "×".join(map(str, r["shape"]))),
                *(r["splits"][split] for split in ("train", "validation", "test")),
                r["available"],
            ]
            for r in rows
        ],
    )
    write_json(json_file, rows)


@data_app.command("get")
def data_get(name: Annotated[str, typer.Argument(help="A name from `tinyml data list`.")]) -> None:
    """Make, find or download one data set, and check it.

    Example: tinyml data get cifar10
    """
    from .. import data

    for split in ("train", "validation", "test"):
        part = data.load(name, split)
        console().print(f"{name} {split}: {len(part.y):,} examples of shape {part.x.shape[1:]}")


@zoo_app.command("list")
def zoo_list(json_file: JsonOption = None) -> None:
    """List the checkpoints with their accuracy and cost of training.

    Example: tinyml zoo list
    """
    from .. import zoo

    cards = [zoo.card(name) for name in zoo.names()]
    table(
        "Zoo",
        ["name", "parameters", "test accuracy", "seeds", "lowest", "highest", "training s"],
        [
            [
                *(c["name"], c["parameters"], c["test_accuracy"]["mean"], c["test_accuracy"]["seeds"]),
                *(c["test_accuracy"]["min"], c["test_accuracy"]["max"], c["runs"][0]["seconds"]),
            ]
            for c in cards
        ],
    )
    write_json(json_file, cards)
