"""The forms of one network's code, the fastest first: what `deploy` falls back to where flash is short."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import DoesNotFitError


@dataclass(frozen=True)
class Form:
    """How the code of a network is made.

    ``optimize`` is `cgen.generate`'s; ``lean`` takes, of the specialised kernels of each layer, the one
    that needs least flash: no transformed weights, loops instead of long straight code.
    """

    optimize: str
    lean: bool = False

    @property
    def name(self) -> str:
        """What a report calls it."""
        return f"{self.optimize}, least flash" if self.lean else self.optimize


_FORMS = (Form("speed"), Form("speed", lean=True), Form("size"))


def forms(optimize: str) -> tuple[Form, ...]:
    """Return the forms that may serve a request, in the order in which to try them.

    Examples
    --------
    >>> [form.name for form in forms("speed")]
    ['speed', 'speed, least flash', 'size']
    >>> [form.name for form in forms("size")]
    ['size']
    """
    return _FORMS if optimize == "speed" else (Form(optimize),)


def missing_flash(error: DoesNotFitError) -> int:
    """Return the bytes of flash that the linker found missing; 0 if RAM is missing too, or nothing is."""
    text = str(error)
    found = re.search(r"(\d+) bytes of FLASH are missing", text)
    return int(found[1]) if found and not re.search(r"bytes of RAM are missing", text) else 0
