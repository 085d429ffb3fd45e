"""Text of one inline assembly statement inside a C function that takes at most five arguments.

The statement saves every register that a function must keep, so that all fourteen are free inside it, and
moves the stack pointer for its own scratch: the operands arrive in r0 to r3 and r12, none of them relative
to the stack.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

SAVED_BYTES = 36
"""Stack of the nine registers that `function` saves."""


_OPERANDS = ("r0", "r1", "r2", "r3", "r12")


class Assembly:
    """A list of instructions with comments.

    Examples
    --------
    >>> asm = Assembly()
    >>> asm("mov r0, r1", "the sum")
    >>> print(asm.text())
        "mov r0, r1\\n\\t" /* the sum */
    """

    def __init__(self) -> None:
        self._lines: list[str] = []

    def __call__(self, instruction: str, comment: str = "") -> None:
        """Append one instruction or label."""
        note = f" /* {comment} */" if comment else ""
        self._lines.append(f'    "{instruction}\\n\\t"{note}')

    def note(self, comment: str) -> None:
        """Append a comment on a line of its own."""
        self._lines.append(f"    /* {comment} */")

    def macro(self, call: str, comment: str = "") -> None:
        """Append the call of a macro that expands to instructions, see `macro`."""
        self._lines.append(f"    {call}" + (f" /* {comment} */" if comment else ""))

    def text(self) -> str:
        """Return the lines, as C string literals that the compiler joins."""
        return "\n".join(self._lines)


def macro(name: str, parameters: Sequence[str], instructions: Iterable[str]) -> str:
    """Return a C macro that expands to instructions; a parameter stands as ``<name>`` in them.

    Examples
    --------
    >>> print(macro("TE_LOAD", ("at",), ["ldr r0, [sp, #<at>]"]))
    #define TE_LOAD(at) \\
        "ldr r0, [sp, #" at "]\\n\\t"
    """
    lines = [f"#define {name}({', '.join(parameters)})"]
    for instruction in instructions:
        text = instruction
        for parameter in parameters:
            text = text.replace(f"<{parameter}>", f'" {parameter} "')
        lines.append(f'    "{text}\\n\\t"')
    return " \\\n".join(lines)


def function(name: str, comment: str, arguments: Sequence[tuple[str, str]], asm: Assembly) -> str:
    """Return a static C function whose body is one assembly statement.

    Parameters
    ----------
    name : str
    comment : str
        What the function computes; it becomes the comment above.
    arguments : sequence of (str, str)
        C type and name of each, at most five: r0 to r3, then r12.
    asm : Assembly
        Instructions; they may change every register except sp, which they must restore.
    """
    if len(arguments) > len(_OPERANDS):
        raise ValueError(f"{name}: {len(arguments)} arguments do not fit in {', '.join(_OPERANDS)}")
    pointers = [kind if kind.endswith("*") else kind + " " for kind, _ in arguments]
    parameters = ", ".join(f"{kind}{name}_" for kind, (_, name) in zip(pointers, arguments))
    pins = "\n".join(
        f'    register {kind}{name} __asm__("{place}") = {name}_;'
        for place, kind, (_, name) in zip(_OPERANDS, pointers, arguments)
    )
    operands = ", ".join(f'"+r"({name})' for _, name in arguments)
    clobbered = "".join(f'"{place}", ' for place in _OPERANDS[len(arguments) :])
    return (
        f"{comment}\n"
        f"TE_NOINLINE static void {name}({parameters}) {{\n{pins}\n"
        '    __asm__ volatile(\n    "push {r4-r11, lr}\\n\\t"\n'
        f'{asm.text()}\n    "pop {{r4-r11, lr}}\\n\\t"\n'
        f'    : {operands}\n    :\n    : {clobbered}"cc", "memory");\n}}'
    )
