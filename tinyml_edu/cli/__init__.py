"""The ``tinyml`` command.  Exit code 0: done, 1: the work failed, 2: wrong usage."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line; failures become one line on stderr, tracebacks need ``--debug``."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    # Two threads on a busy machine can be many times slower than one; the user's own choice wins.
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
    from ..errors import TinyMLError
    from .app import app

    try:
        app()
    except TinyMLError as error:
        if debug:
            raise
        _fail(str(error), error.exit_code)
    except MemoryError:
        if debug:
            raise
        _fail("out of memory; close other programs or use a smaller model", 1)
    except OSError as error:
        if debug:
            raise
        where = f" ({error.filename})" if error.filename else ""
        _fail(f"{error.strerror or error}{where}; check the path, the permissions and the free space", 1)
    except Exception as error:  # the last line of defence; --debug shows the traceback
        if debug:
            raise
        _fail(f"internal error: {type(error).__name__}: {error}; please report it with --debug output", 1)


def _fail(message: str, code: int) -> None:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    raise SystemExit(code)
