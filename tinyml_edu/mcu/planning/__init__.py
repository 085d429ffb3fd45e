"""Memory planner: one offset in one arena for each activation, and a certificate of how good the plan is.

`buffers` says what is planned, `sharing` which tensors share a buffer, `placement` and `exact` where buffers
go, `planner` makes plans of them, `verification` checks plans independently, `ordering` reorders nodes, and
`explanation` speaks to the reader.
"""

from .buffers import ALIGNMENT, Buffer, PlanError, aligned, arena_bytes, live_at, live_bytes, lower_bound
from .exact import Solution, solve
from .explanation import explain_sram, peak, short_name
from .ordering import Schedule, reorder
from .placement import Planner
from .planner import PLANNERS, STACK_BYTES, Plan, compare, placed, plan, streamed_input_bound
from .sharing import Sharing, aliases, lifetimes, moves_nothing, scratch_name, share
from .verification import verify, verify_values

__all__ = [
    "ALIGNMENT",
    "PLANNERS",
    "STACK_BYTES",
    "Buffer",
    "Plan",
    "PlanError",
    "Planner",
    "Schedule",
    "Sharing",
    "Solution",
    "aliases",
    "aligned",
    "arena_bytes",
    "compare",
    "explain_sram",
    "lifetimes",
    "live_at",
    "live_bytes",
    "lower_bound",
    "moves_nothing",
    "peak",
    "placed",
    "plan",
    "reorder",
    "scratch_name",
    "share",
    "short_name",
    "solve",
    "streamed_input_bound",
    "verify",
    "verify_values",
]
