"""The roofline of this machine, measured: how fast it multiplies, how fast it streams, and where they meet.

A kernel that does ``I`` operations for each byte it moves can run at no more than
``min(peak, I * bandwidth)`` (Williams, Waterman and Patterson, CACM 2009,
https://doi.org/10.1145/1498765.1498785).  One MAC is two operations (FLOP).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UsageError
from .latency import measure_latency


@dataclass(frozen=True)
class Roofline:
    """Two ceilings: ``peak_gflops``, 10^9 operations a second; ``bandwidth_gbs``, 10^9 bytes a second."""

    peak_gflops: float
    bandwidth_gbs: float
    threads: int = 1
    dtype: str = "float32"

    @property
    def ridge(self) -> float:
        """Intensity in FLOP per byte where the two ceilings meet."""
        return self.peak_gflops / self.bandwidth_gbs

    def attainable_gflops(self, intensity: float) -> float:
        """Return the ceiling for a kernel of ``intensity`` FLOP per byte.

        Examples
        --------
        >>> machine = Roofline(peak_gflops=100.0, bandwidth_gbs=10.0)
        >>> machine.attainable_gflops(2.0), machine.attainable_gflops(50.0), machine.ridge
        (20.0, 100.0, 10.0)
        """
        return min(self.peak_gflops, intensity * self.bandwidth_gbs)

    def bound(self, intensity: float) -> str:
        """Return ``"memory"`` or ``"compute"``: which ceiling is the lower one."""
        return "memory" if intensity < self.ridge else "compute"


def arithmetic_intensity(macs: float, bytes_moved: float) -> float:
    """Return FLOP per byte; one MAC is a multiplication and an addition.

    Examples
    --------
    >>> arithmetic_intensity(macs=1000, bytes_moved=500)
    4.0
    """
    if bytes_moved <= 0:
        raise UsageError(f"bytes_moved={bytes_moved}: a kernel moves at least one byte; count its operands")
    return 2 * macs / bytes_moved


def measure_roofline(
    *, threads: int = 1, size: int = 512, stream_bytes: int = 1 << 26, repeats: int = 30
) -> Roofline:
    """Measure both ceilings with torch in float32.

    The peak is a square matrix product.  The bandwidth is the better of a sum, which only reads, and a copy,
    which reads and writes; both run over arrays that are larger than most caches.  Many short runs are made
    and the fastest counts: a ceiling is what the machine *can* do, also while other programs use it.

    Parameters
    ----------
    threads : int
        Threads for torch; the same number must be used for what is compared with the result.
    size : int
        The product is ``(size, size) @ (size, size)``.
    stream_bytes : int
        Bytes of the array that is read.
    repeats : int
        Runs of each, after one warm-up.
    """
    import torch

    a, b, c = (torch.ones(size, size) for _ in range(3))
    gemm = measure_latency(lambda: torch.mm(a, b, out=c), warmup=1, repeats=repeats, threads=threads)
    # Ones and not zeros: untouched pages of zeros are all one page, which any cache holds.
    source = torch.ones(stream_bytes // 4)
    target = torch.ones_like(source)
    copy = measure_latency(lambda: target.copy_(source), warmup=1, repeats=repeats, threads=threads)
    read = measure_latency(source.sum, warmup=1, repeats=repeats, threads=threads)
    moved = source.numel() * source.element_size()
    return Roofline(
        peak_gflops=2 * size**3 / gemm.min_ms * 1e-6,
        bandwidth_gbs=max(2 * moved / copy.min_ms, moved / read.min_ms) * 1e-6,
        threads=threads,
    )
