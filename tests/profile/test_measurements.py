"""Latency statistics with a made clock, energy against the published table, the roofline's arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinyml_edu.errors import UnknownNameError, UsageError
from tinyml_edu.profile import (
    ENERGY_45NM_PJ,
    Roofline,
    arithmetic_intensity,
    energy_breakdown_uj,
    inference_energy_uj,
    measure_latency,
    measure_roofline,
)


def _timed(durations, warmup):
    """Measure calls that take the given times by a clock of their own; multiples of 2^-10 s are exact."""
    now = [0.0]
    runs = iter(durations)

    def call():
        now[0] += next(runs) / 1024

    return measure_latency(
        call, warmup=warmup, repeats=len(durations) - warmup, threads=None, clock=lambda: now[0]
    )


@given(st.lists(st.integers(1, 10_000), min_size=2, max_size=30), st.integers(0, 3))
def test_quartiles_are_those_of_numpy_without_the_warm_up(durations, warmup):
    report = _timed([99_999] * warmup + durations, warmup)
    want = np.quantile(np.array(durations) * 1e3 / 1024, [0.25, 0.5, 0.75])
    # Both interpolate between two samples; three roundings of 2^-53 each.
    np.testing.assert_allclose([report.q1_ms, report.median_ms, report.q3_ms], want, rtol=1e-15 * 4)
    assert report.min_ms == min(durations) * 1e3 / 1024
    assert len(report.samples_ms) == report.repeats == len(durations)


def test_one_interrupted_run_moves_a_mean_and_not_the_median():
    report = _timed([1024, 10, 10, 10, 10, 10_000], 1)
    assert report.median_ms == 10e3 / 1024 < np.mean(report.samples_ms)


def test_threads_are_set_during_the_measurement_and_restored():
    before = torch.get_num_threads()
    seen = []
    try:
        torch.set_num_threads(2)
        measure_latency(lambda: seen.append(torch.get_num_threads()), warmup=1, repeats=2, threads=1)
        assert seen == [1, 1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_too_few_repeats_are_refused():
    with pytest.raises(UsageError, match="at least 2"):
        measure_latency(lambda: None, repeats=1)


def test_the_table_is_the_published_one():
    """Horowitz, ISSCC 2014, and Han et al., ISCA 2016: 640 pJ for DRAM, 128 times an 8 KB SRAM."""
    assert ENERGY_45NM_PJ["dram_32bit"] / ENERGY_45NM_PJ["sram_32bit"] == 128
    assert ENERGY_45NM_PJ["int8_add"] < ENERGY_45NM_PJ["int32_add"] < ENERGY_45NM_PJ["float16_add"]
    assert ENERGY_45NM_PJ["int8_mul"] < ENERGY_45NM_PJ["float16_mul"] < ENERGY_45NM_PJ["int32_mul"]


@pytest.mark.parametrize(("dtype", "picojoules"), [("int8", 0.3), ("float16", 1.5), ("float32", 4.6)])
def test_a_million_macs(dtype, picojoules):
    assert inference_energy_uj(10**6, dtype=dtype) == pytest.approx(picojoules, rel=1e-12)


def test_energy_is_the_sum_of_its_parts_and_words_have_four_bytes():
    parts = energy_breakdown_uj(0, dram_bytes=4e6, sram_bytes=8e6)
    assert parts == {
        "compute": 0,
        "sram": pytest.approx(10, rel=1e-12),
        "dram": pytest.approx(640, rel=1e-12),
    }
    assert inference_energy_uj(0, dram_bytes=4e6, sram_bytes=8e6) == sum(parts.values())


def test_an_unknown_dtype_is_named():
    with pytest.raises(UnknownNameError, match="int4"):
        inference_energy_uj(1, dtype="int4")


@given(st.floats(0.01, 1e4), st.floats(1, 1e4), st.floats(1, 1e3))
def test_the_roof_is_the_lower_ceiling_and_they_meet_at_the_ridge(intensity, peak, bandwidth):
    machine = Roofline(peak, bandwidth)
    attainable = machine.attainable_gflops(intensity)
    assert attainable <= peak
    assert attainable <= intensity * bandwidth
    assert attainable in (peak, intensity * bandwidth)
    assert (machine.bound(intensity) == "memory") == (intensity < machine.ridge)


def test_intensity_counts_two_operations_a_mac_and_refuses_no_bytes():
    assert arithmetic_intensity(3, 2) == 3.0
    with pytest.raises(UsageError, match="at least one byte"):
        arithmetic_intensity(3, 0)


def test_the_machines_roofline_is_measured():
    machine = measure_roofline(threads=1, size=64, stream_bytes=1 << 16, repeats=3)
    assert machine.peak_gflops > 0
    assert machine.bandwidth_gbs > 0
    assert machine.threads == 1
