"""``python -m tinyml_edu.cli`` is the ``tinyml`` command."""

from . import main

main()
