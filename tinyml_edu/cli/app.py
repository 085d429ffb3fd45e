"""The tree of commands."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__
from . import compiler, course, library, system

EPILOG = "Every command takes --debug, which shows the traceback of an error."

app = typer.Typer(
    name="tinyml",
    help="From a PyTorch model to a firmware image, and the course that teaches it.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"tinyml_edu {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


app.command("demo")(system.demo)
app.command("doctor")(system.doctor)
app.command("profile")(compiler.profile)
app.command("plan")(compiler.plan)
app.command("deploy")(compiler.deploy)
app.command("run")(compiler.run)
app.add_typer(library.data_app, name="data")
app.add_typer(library.zoo_app, name="zoo")
app.add_typer(course.lab_app, name="lab")
app.add_typer(course.grade_app, name="grade")
