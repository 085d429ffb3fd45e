"""Find a lab's questions: in the library, or in the folder of a course that brings labs of its own."""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
import re
import sys
from pathlib import Path
from types import ModuleType

from ..errors import GradingError, UnknownNameError
from .protocol import Lab

CHECKS_VARIABLE = "TINYML_EDU_CHECKS"


def load_lab(lab_id: str) -> Lab:
    """Return the lab ``"lab00"``: of ``tinyml_edu.checks``, else of the folder ``$TINYML_EDU_CHECKS``.

    Raises
    ------
    UnknownNameError
        If neither has it.
    """
    if lab_id in known_labs():
        return importlib.import_module(f"{__package__}.{lab_id}").LAB
    private = Path(os.environ.get(CHECKS_VARIABLE, "")) / f"{lab_id}.py"
    if os.environ.get(CHECKS_VARIABLE) and private.is_file():
        return load_checks(private)
    raise UnknownNameError("lab", lab_id, known_labs())


def known_labs() -> list[str]:
    """Return the ids of the labs that the library has checks for."""
    package = importlib.import_module(__package__ or "")
    names = [module.name for module in pkgutil.iter_modules(package.__path__)]
    return sorted(name for name in names if re.fullmatch(r"lab\d+", name))  # not lab00_judges


def load_checks(path: Path) -> Lab:
    """Return ``LAB`` of a private lab's file, the same object as long as the file does not change.

    Its hidden module imports it as ``tinyml_edu_checks_<id>``.
    """
    name = f"tinyml_edu_checks_{path.stem}"
    stamp = (str(path), path.stat().st_mtime_ns if path.is_file() else 0)
    module = sys.modules.get(name)
    if module is None or vars(module).get("_stamp") != stamp:
        module = load_file(path, name)
        vars(module)["_stamp"] = stamp
    return vars(module)["LAB"]


def load_file(path: Path, name: str) -> ModuleType:
    """Run a Python file as a module of the given name.

    Raises
    ------
    GradingError
        If the file is absent or fails to run.
    """
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise GradingError(f"{path} is missing; docs/decisions/0002-question-protocol.md says what it holds")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise GradingError(f"{path} fails to load: {type(error).__name__}: {error}") from error
    return module
