"""Costs of a network: parameters, MACs, activation memory, weight bytes, latency, energy, roofline."""

from .._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    submodules=["counting", "energy", "latency", "liveness", "model_profile", "roofline"],
    attributes={
        "counting": ["conv2d_macs", "count_parameters", "model_macs", "weight_bytes"],
        "energy": ["ENERGY_45NM_PJ", "energy_breakdown_uj", "inference_energy_uj"],
        "latency": ["LatencyReport", "measure_latency"],
        "liveness": ["live_elements", "peak_activation_bytes", "schedule_of"],
        "model_profile": ["LayerProfile", "ModelProfile", "profile"],
        "roofline": ["Roofline", "arithmetic_intensity", "measure_roofline"],
    },
)
