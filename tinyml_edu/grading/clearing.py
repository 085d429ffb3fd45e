"""nbgrader's ClearSolutions, which also knows C: a ``%%writefile q1.c`` answer clears to ``#error``."""

from __future__ import annotations

from nbformat import NotebookNode
from nbgrader.preprocessors import ClearSolutions

from .notebooks import written_file

C_STUB = '#error "YOUR CODE HERE"'


class ClearAllSolutions(ClearSolutions):
    """Clear Python, prose and C answers; the stub of a cell follows the file that the cell writes."""

    def preprocess_cell(
        self, cell: NotebookNode, resources: dict, cell_index: int
    ) -> tuple[NotebookNode, dict]:
        """Clear one cell."""
        written = written_file(cell.source) if cell.cell_type == "code" else None
        if written is None or not written[0].endswith((".c", ".h")):
            return super().preprocess_cell(cell, resources, cell_index)
        magic = cell.source[: len(cell.source) - len(written[1])]
        stubs: dict[str, str] = self.code_stub  # type: ignore[has-type]
        self.code_stub = {**stubs, resources["language"]: C_STUB}
        try:
            cell, resources = super().preprocess_cell(cell, resources, cell_index)
        finally:
            self.code_stub = stubs
        # A cell without a region was cleared as a whole, its first line included.
        if not cell.source.startswith(magic):
            cell.source = magic + cell.source
        return cell, resources
