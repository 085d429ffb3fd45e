"""One JSON file a submission, written atomically; exports that no cell of a spreadsheet can misread."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .course import Course
from .labs import LabFolder

Record = dict[str, Any]


def grader_version(folder: LabFolder, course: Course, lab_id: str) -> str:
    """Return the hash of everything that decides a score beside the submission.

    That is the library (references and judges call it), the lab's checks, the hidden judges, the release
    notebook and the secret of the seeds.
    """
    package = Path(__file__).resolve().parents[1]
    files = sorted(package.rglob("*.py"))
    files += [course.hidden_file(lab_id), folder.notebook, *([folder.checks] if folder.checks else [])]
    digest = hashlib.sha256(course.secret())
    for path in files:
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def record_key(version: str, student: str, contents: bytes) -> str:
    """Return the key of a submission: same student, same bytes, same grader give the same record."""
    return hashlib.sha256(b"\0".join([version.encode(), student.encode(), contents])).hexdigest()


def load(path: Path, key: str) -> Record | None:
    """Return the kept result, or None when there is none for this key; a damaged file counts as none."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return kept["result"] if kept["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save(path: Path, key: str, result: Record) -> None:
    """Keep a result under its key."""
    write_text(path, json.dumps({"key": key, "result": result}, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old or the new contents and never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8", newline="")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def file_name(student: str) -> str:
    """Return a file name for a student: readable where possible, unique always.

    Examples
    --------
    >>> file_name("ada")
    'ada-fdee43.json'
    """
    readable = "".join(c if c.isalnum() and c.isascii() else "_" for c in student)[:60]
    # Case-insensitive file systems and replaced characters would let two students share a record.
    return f"{readable}-{hashlib.sha256(student.encode()).hexdigest()[:6]}.json"


def to_csv(records: Sequence[Record]) -> str:
    """Return the scores as CSV: every field quoted, no field that a spreadsheet runs as a formula.

    Examples
    --------
    >>> row = {"student": "=1+1, Ada", "lab": "lab00", "score": 1.0, "max_score": 2.0, "manual_points": 0.0}
    >>> print(to_csv([row | {"questions": [{"id": "q1", "score": 1.0}], "notes": []}]))
    "student","lab","score","max_score","manual_points","q1","notes"
    "'=1+1, Ada","lab00","1.0","2.0","0.0","1.0",""
    """
    ids = list(dict.fromkeys(question["id"] for record in records for question in record["questions"]))
    fields = ["student", "lab", "score", "max_score", "manual_points"]
    buffer = io.StringIO()
    writer = csv.writer(buffer, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow([*fields, *ids, "notes"])
    for record in records:
        scores = {question["id"]: question["score"] for question in record["questions"]}
        row = [record[name] for name in fields] + [scores.get(i, "") for i in ids]
        writer.writerow([guard(value) for value in [*row, "; ".join(record["notes"])]])
    return buffer.getvalue()


def guard(value: Any) -> str:
    """Return a cell's text; one that a spreadsheet would take for a formula starts with an apostrophe."""
    text = str(value)
    if isinstance(value, str) and text.lstrip().startswith(("=", "+", "-", "@", "|", "%")):
        return "'" + text
    return "'" + text if isinstance(value, str) and text[:1] in {"\t", "\r", "\n", "\0"} else text


def export(records: Iterable[Record], csv_file: Path | None, json_file: Path | None) -> None:
    """Write the table of a class."""
    rows = list(records)
    if csv_file:
        write_text(Path(csv_file), to_csv(rows))
    if json_file:
        write_text(Path(json_file), json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
