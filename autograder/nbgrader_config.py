"""Stock nbgrader on these labs, in a class's folder: `nbgrader --config=DIR/nbgrader_config.py ...`.

The class's folder is the current one (or $TINYML_EDU_CLASS): `release/`, `submitted/`, `autograded/`,
`feedback/` and `gradebook.db` appear there.  The sources are the notebooks that `make release` builds.
"""

import os
import sys
from pathlib import Path

from tinyml_edu.checks.loading import CHECKS_VARIABLE
from tinyml_edu.grading.course import COURSE_VARIABLE, find_course

c = get_config()  # noqa: F821  nbgrader's loader defines it

# This file may be copied into the class's folder; the judges stay where they are.
here = Path(__file__).resolve().parent
course = find_course(here if (here / "hidden").is_dir() else None).path
os.environ[COURSE_VARIABLE] = str(course)  # the kernels that grade inherit it
if (course.parent / "checks").is_dir():
    os.environ.setdefault(CHECKS_VARIABLE, str(course.parent / "checks"))

# nbgrader starts `alembic` by name, which an environment that is not activated does not have on its path.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])

c.CourseDirectory.course_id = "tinyml_edu"
c.CourseDirectory.root = os.path.abspath(os.environ.get("TINYML_EDU_CLASS", "."))
c.CourseDirectory.source_directory = str(course.parent / ".build" / "source")

# The stock steps, with a ClearSolutions that also clears C answers.
c.GenerateAssignment.preprocessors = [
    "nbgrader.preprocessors.IncludeHeaderFooter",
    "nbgrader.preprocessors.LockCells",
    "tinyml_edu.grading.clearing.ClearAllSolutions",
    "nbgrader.preprocessors.ClearOutput",
    "nbgrader.preprocessors.CheckCellMetadata",
    "nbgrader.preprocessors.ComputeChecksums",
    "nbgrader.preprocessors.SaveCells",
    "nbgrader.preprocessors.ClearHiddenTests",
    "nbgrader.preprocessors.ClearMarkScheme",
    "nbgrader.preprocessors.ComputeChecksums",
    "nbgrader.preprocessors.CheckCellMetadata",
]

# A deleted test cell comes back instead of leaving the question ungraded for ever.
c.OverwriteCells.add_missing_cells = True
# One question may take 30 s; a cell that the student added may train.
c.ExecutePreprocessor.timeout = 120
