"""Where most of many estimates of one width or spread agree."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def log_mode(
    logarithms: NDArray[np.floating],
    bandwidth: float,
    weight: NDArray[np.floating] | None = None,
    least_height: float = 1.0,
) -> float:
    """Mode of a sample of logarithms: the peak of its kernel density.

    With a kernel about as wide as the estimates' own error, scatter from noise is averaged over and what
    lies off by more than that (contamination) does not count.

    Args:
        logarithms: natural logarithms of the estimates, shape (n,), n >= 1.
        bandwidth: standard deviation of the Gaussian kernel.
        weight: how much each counts, shape (n,); None counts all alike.
        least_height: take the lowest of the density's peaks that are at least this share of the highest.

    Returns:
        The logarithm at the peak.
    """
    values = np.asarray(logarithms, dtype=np.float64)
    low, high = np.quantile(values, (0.01, 0.99))
    step = min(bandwidth / 8.0, 0.005)
    bins = min(int((high - low + 6.0 * bandwidth) / step) + 3, 4096)
    counts, edges = np.histogram(
        values, bins=bins, range=(low - 3.0 * bandwidth, high + 3.0 * bandwidth), weights=weight
    )
    width = edges[1] - edges[0]
    reach = min(int(4.0 * bandwidth / width), (bins - 1) // 2)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) * width / bandwidth) ** 2)
    density = np.convolve(counts, kernel, mode="same")
    inner = density[1:-1]
    peaks = (inner >= density[:-2]) & (inner > density[2:]) & (inner >= least_height * density.max())
    first = int(np.argmax(peaks)) + 1 if peaks.any() else int(np.argmax(density))
    return float((edges[first] + edges[first + 1]) / 2.0)
