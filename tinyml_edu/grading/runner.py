"""Grade a directory of submissions on all cores; a killed run resumes, a second run changes nothing."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checks.protocol import Lab
from ..errors import DataError, GradingError
from .course import Course, find_course, seeded_rng
from .graft import Graft, choose_notebook, graft, read_master
from .labs import LabFolder
from .notebooks import read_cells
from .process import Launcher, plain_process
from .records import Record, export, file_name, grader_version, load, record_key, save
from .scoring import Grader

REFUSAL = (
    "there is no sandbox, so student code would run with your own rights; for submissions that you trust add "
    "--unsafe-no-sandbox"
)


@dataclass(frozen=True)
class Submission:
    """What one student handed in."""

    student: str
    notebooks: tuple[Path, ...]


def collect(directory: Path) -> list[Submission]:
    """Return the submissions in a directory: a folder or an ``.ipynb`` file a student, any notebook name.

    Raises
    ------
    GradingError
        If there is none.
    """
    if not directory.is_dir():
        raise GradingError(f"there is no directory {directory}; --submissions takes one folder a class")
    found: dict[str, Submission] = {}
    for path in sorted(directory.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            student, notebooks = path.name, tuple(_notebooks_in(path))
        elif path.suffix == ".ipynb":
            student, notebooks = path.stem, (path,)
        else:
            continue
        # A folder "ada" and a file "ada.ipynb" are two rows and not one lost student.
        student = path.name if student in found else student
        found[student] = Submission(student, notebooks)
    if not found:
        raise GradingError(f"{directory} holds no submission: neither a folder nor an .ipynb file a student")
    return list(found.values())


def _notebooks_in(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*.ipynb")):
        inside = path.relative_to(folder).parts
        # A link could lead to another student's work.
        if not any(part.startswith(".") for part in inside) and path.is_file() and not path.is_symlink():
            yield path


def run(
    folder: LabFolder,
    submissions: Path,
    *,
    csv: Path | None = None,
    json: Path | None = None,
    workers: int = 2,
    course: str | os.PathLike[str] | None = None,
    unsafe_no_sandbox: bool = False,
    launch: Launcher | None = None,
) -> list[Record]:
    """Grade every submission; write CSV and JSON; return the records in order of the students' names.

    Parameters
    ----------
    folder : LabFolder
        The lab.
    submissions : Path
        One folder or one notebook a student.
    csv, json : Path, optional
        Where to write the scores.
    workers : int
        Submissions graded at the same time.
    course : path, optional
        The instructor's folder.
    unsafe_no_sandbox : bool
        Run student code as a plain process with the caller's rights.
    launch : Launcher, optional
        A sandbox; a function at the top level of a module, so that worker processes can import it.

    Raises
    ------
    GradingError
        If there is neither a sandbox nor the permission to go without.
    """
    if launch is None and not unsafe_no_sandbox:
        raise GradingError(REFUSAL)
    home, found = find_course(course), collect(Path(submissions))
    lab = folder.load()
    home.questions(lab)  # a broken course folder fails here, before any work
    read_master(folder.notebook)
    version = grader_version(folder, home, lab.id)
    tasks = [(folder, home, version, submission, launch or plain_process) for submission in found]
    records = list(
        _in_processes(tasks, workers) if workers > 1 and len(tasks) > 1 else map(_grade_task, tasks)
    )
    records.sort(key=lambda record: record["student"])
    export(records, csv, json)
    return records


Task = tuple[LabFolder, Course, str, Submission, Launcher]


def _in_processes(tasks: list[Task], workers: int) -> Iterator[Record]:
    from tqdm import tqdm

    # spawn: a forked child would inherit threads that libraries have started here.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context) as pool:
        futures = [pool.submit(_grade_task, task) for task in tasks]
        try:
            for future in tqdm(as_completed(futures), total=len(futures), unit="submission", disable=None):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _grade_task(task: Task) -> Record:
    folder, course, version, submission, launch = task
    grader = Grader(folder, folder.load(), read_master(folder.notebook), launch)
    path, note = choose_notebook(submission.notebooks, grader.master, folder.name)
    contents = path.read_bytes() if path else b""
    kept = course.state / "records" / grader.lab.id / file_name(submission.student)
    key = record_key(version, submission.student, contents + note.encode())
    record = load(kept, key)
    if record is None:
        found, notes = take_answers(grader, path)
        record = grade_answers(grader, course, submission.student, found)
        record["notes"] = [*([note] if note else []), *notes]
        save(kept, key, record)
    return record


def take_answers(grader: Grader, path: Path | None) -> tuple[Graft, list[str]]:
    """Return the answers in a notebook file and what was unusual; an unreadable file holds none."""
    if path is None:
        return Graft(), ["no notebook was handed in"]
    try:
        found = graft(grader.master, read_cells(path), grader.lab)
    except DataError as error:
        return Graft(), [str(error)]
    return found, found.notes


def grade_answers(grader: Grader, course: Course, student: str, found: Graft) -> Record:
    """Grade every automatic question; the seeds depend on the secret, the student and the question."""
    secret, lab = course.secret(), grader.lab
    scores = [
        grader.grade(question, found, seeded_rng(secret, student, lab.id, question.id)).as_dict()
        for question in course.questions(lab)
    ]
    return make_record(student, lab, scores, [])


def make_record(student: str, lab: Lab, scores: list[dict[str, Any]], notes: list[str]) -> Record:
    """Return a record with the keys of the machine-readable output."""
    return {
        "student": student,
        "lab": lab.id,
        "score": round(sum(score["score"] for score in scores), 6),
        "max_score": lab.max_score,
        "manual_points": lab.manual_points,
        "questions": scores,
        "notes": notes,
    }
