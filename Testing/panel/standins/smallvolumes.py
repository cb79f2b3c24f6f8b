"""Small volumes for the scene."""

from __future__ import annotations

import numpy as np
import slicer


def lungSlab(shape_kji=(6, 64, 64), seed=3) -> np.ndarray:
    """A body with two lungs in air, HU: small enough to super-resolve in seconds."""
    _k, j, i = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape_kji), indexing="ij")
    array = np.full(shape_kji, -1000.0)
    array[(i / 0.95) ** 2 + (j / 0.8) ** 2 < 1] = 40
    for side in (-1, 1):
        array[((i - side * 0.45) / 0.32) ** 2 + (j / 0.55) ** 2 < 1] = -850
    array += np.random.default_rng(seed).normal(0, 15, shape_kji)
    return np.clip(array, -1024, 1500).astype(np.int16)


def addVolume(array_kji, name, spacing=(2.0, 2.0, 3.0), origin=(10.0, -20.0, 30.0), directions=None, className=None):
    """A volume node with a geometry of its own, RAS."""
    ijkToRas = np.eye(4)
    ijkToRas[:3, :3] = (np.diag((-1.0, -1.0, 1.0)) if directions is None else directions) @ np.diag(spacing)
    ijkToRas[:3, 3] = origin
    node = slicer.mrmlScene.AddNewNodeByClass(className or "vtkMRMLScalarVolumeNode", name)
    slicer.util.updateVolumeFromArray(node, array_kji)
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(ijkToRas))
    node.CreateDefaultDisplayNodes()
    return node
