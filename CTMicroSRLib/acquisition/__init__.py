"""A scan's own blur and noise, estimated from its voxels."""

from CTMicroSRLib.acquisition.estimation import Acquisition, estimate_acquisition

__all__ = ["Acquisition", "estimate_acquisition"]
