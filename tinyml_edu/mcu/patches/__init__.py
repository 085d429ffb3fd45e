"""Patch-based inference: schedule, cost, exact execution, search and code."""

from ..._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    submodules=["execute", "memory", "memory_plan", "schedule", "search"],
    attributes={
        "execute": ["run_patches"],
        "memory": ["PUBLISHED", "Accounting", "Cost", "cost"],
        "memory_plan": ["patch_buffers", "plan_patches"],
        "schedule": ["Schedule", "make_schedule", "patchable_layers", "tiles"],
    },
)
