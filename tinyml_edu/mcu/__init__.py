"""Microcontroller compiler: capture, schedule, memory plan, C, firmware, emulator."""

from .._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    submodules=[
        *("boards", "capturing", "cgen", "deployment", "elf", "emulator", "planning"),
        *("project_folder", "toolchain"),
    ],
    attributes={
        "boards": ["BOARDS", "Board", "get_board"],
        "capturing": ["capture"],
        "deployment": ["Deployment", "RunResult", "deploy"],
        "emulator": ["EmulationResult", "emulate"],
        "planning": ["Plan", "plan"],
    },
)
