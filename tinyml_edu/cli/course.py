"""``tinyml lab`` and ``tinyml grade``: the course from a shell."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ..errors import GradingError
from .output import JsonOption, check_output, console, table, write_json

lab_app = typer.Typer(help="Labs: list, open, check your work.", no_args_is_help=True)
grade_app = typer.Typer(help="For instructors: grade submissions, prove a lab.", no_args_is_help=True)

LabArgument = Annotated[
    str, typer.Argument(metavar="LAB", help="A lab's folder name or a unique prefix: lab00.")
]
CourseOption = Annotated[
    Path | None, typer.Option("--course", metavar="DIR", help="The instructor's folder: hidden/, mutants/.")
]


@lab_app.command("list")
def lab_list(json_file: JsonOption = None) -> None:
    """List the labs.

    Example: tinyml lab list
    """
    from ..grading import labs

    rows = labs.summaries()
    table(
        "Labs",
        ["lab", "title", "minutes", "points", "exercises"],
        [[r["lab"], r["title"], r["minutes"], r["points"], r["questions"]] for r in rows],
    )
    write_json(json_file, rows)


@lab_app.command("open")
def lab_open(lab: LabArgument) -> None:
    """Open a lab in JupyterLab.

    Example: tinyml lab open lab00
    """
    from ..grading import labs

    notebook = labs.find(lab).notebook
    try:
        os.execvp("jupyter", ["jupyter", "lab", str(notebook)])
    except FileNotFoundError as error:
        raise GradingError("JupyterLab is not installed; run: pip install 'tinyml_edu[labs]'") from error


@lab_app.command("check")
def lab_check(
    lab: LabArgument,
    notebook: Annotated[
        Path | None, typer.Argument(metavar="[NOTEBOOK]", help="Your notebook; default: the one in labs/.")
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Run the visible checks of a lab on your notebook, in a fresh process.

    Example: tinyml lab check lab00 my_lab00.ipynb
    """
    from ..grading import labs, student

    found = labs.find(lab)
    results = student.check_notebook(found, notebook or found.notebook)
    table(
        f"{found.name}: visible checks (hidden ones decide the points)",
        ["question", "passed", "what to look at"],
        [[r["id"], r["passed"], r["reason"]] for r in results],
    )
    write_json(json_file, results)
    missing = [r["id"] for r in results if not r["passed"]]
    if missing:
        raise GradingError(
            f"{len(missing)} of {len(results)} questions do not pass yet; start with {missing[0]} above"
        )


@grade_app.command("run")
def grade_run(
    lab: LabArgument,
    submissions: Annotated[
        Path, typer.Option(metavar="DIR", help="One folder or one .ipynb for each student.")
    ],
    csv_file: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Scores as CSV.")] = None,
    json_file: JsonOption = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that grade at the same time.")] = 2,
    course: CourseOption = None,
    unsafe_no_sandbox: Annotated[
        bool,
        typer.Option(
            "--unsafe-no-sandbox", help="Run submissions with your own rights: only code that you trust."
        ),
    ] = False,
) -> None:
    """Grade a directory of submissions.

    Example: tinyml grade run lab00 --submissions in/ --csv grades.csv --json grades.json --unsafe-no-sandbox
    """
    from ..grading import labs, runner

    check_output(csv_file)
    check_output(json_file)
    records = runner.run(
        labs.find(lab),
        submissions,
        csv=csv_file,
        json=json_file,
        workers=workers,
        course=course,
        unsafe_no_sandbox=unsafe_no_sandbox,
    )
    table(
        f"{lab}: {len(records)} submissions",
        ["student", "score", "of", "written points to mark", "notes"],
        [
            [r["student"], r["score"], r["max_score"], r["manual_points"], "; ".join(r["notes"])]
            for r in records
        ],
    )


@grade_app.command("prove")
def grade_prove(lab: LabArgument, course: CourseOption = None, json_file: JsonOption = None) -> None:
    """Prove a lab: reference, empty release, mutants, leaks, and a run offline within the budget.

    Example: tinyml grade prove lab00
    """
    from ..grading import labs, prove

    check_output(json_file)
    report = prove.prove(labs.find(lab), course=course, progress=console().print)
    table(
        f"{lab}: five runs", ["what", "value"], [[k, _short(v)] for k, v in report.items() if k != "details"]
    )
    write_json(json_file, report)
    problems = prove.problems(report)
    if problems:
        raise GradingError(f"{lab} is not proven: " + "; ".join(problems))
    console().print(f"{lab} is proven")


def _short(value: object) -> object:
    return len(value) if isinstance(value, list) else value
