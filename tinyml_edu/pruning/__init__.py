"""Pruning: criteria, granularities, schedules, ratios, structured surgery and sparse storage."""

from .._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    submodules=[
        "activation_criteria",
        "channel_order",
        "channel_search",
        "channels",
        "criteria",
        "dependency",
        "fine_grained",
        "granularity",
        "masking",
        "n_m",
        "ratio_search",
        "ratios",
        "schedules",
        "slimming",
        "sparse",
        "structured",
        "surgery",
    ],
    attributes={
        "channel_order": ["reorder_for_n_m"],
        "channel_search": ["latency_cost", "macs_cost", "search_channel_ratios"],
        "channels": [
            "apply_channel_sorting",
            "channel_prune",
            "get_input_channel_importance",
            "get_num_channels_to_keep",
        ],
        "dependency": ["ChannelGroup", "channel_groups"],
        "fine_grained": ["FineGrainedPruner", "apply_masks", "fine_grained_prune", "prunable_weights"],
        "masking": ["CRITERIA", "PruneConfig", "PruneResult", "prune"],
        "n_m": ["n_m_mask", "search_permutation"],
        "ratio_search": ["layer_costs", "search_ratios"],
        "ratios": ["sensitivity_scan"],
        "schedules": ["GradualPruner", "Ticket", "cubic_sparsity", "lottery_ticket"],
        "slimming": ["slimming_loss"],
        "structured": ["ChannelPruner", "kept_channels", "shrink"],
    },
)
