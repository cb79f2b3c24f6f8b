"""CTMicroSR: super-resolution of chest CT to micro-CT scale."""
