"""Patches of real scans: inside the lungs of a mask, and of a segmentation."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from CTMicroSRLib.files import read_volume, write_volume
from CTMicroSRLib.lungs import segment_lungs
from CTMicroSRLib.training.batches import Batches
from CTMicroSRLib.training.patch_sources import patches_from_volumes
from CTMicroSRLib.training.patches import PatchSettings
from CTMicroSRLib.volume import Geometry, Region, Volume

pytestmark = pytest.mark.real_data


@pytest.fixture(scope="module")
def micro(tmp_path_factory):
    """Grey values with structure everywhere."""
    grey = np.random.default_rng(0).integers(0, 9000, (3, 80, 80)).astype(np.int16)
    path = tmp_path_factory.mktemp("micro") / "micro.nrrd"
    write_volume(Volume(grey, Geometry((80, 80, 3), (1.0, 1.0, 1.0))), path)
    return path


def test_patches_of_a_real_chest_lie_inside_its_lung_mask(real_data, micro, tmp_path):
    folder = real_data / "lung_mask"
    settings = PatchSettings(patch_voxels=8, scale=4, patches_per_case=200)
    patches = patches_from_volumes(
        tmp_path / "patches", [folder / "ct-64.nrrd"], [micro], settings, clinical_masks=[folder / "wholeLung-64.nrrd"]
    )
    lungs = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "wholeLung-64.nrrd"))) > 0
    voxels = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "ct-64.nrrd")))
    for patch, (_, k, j, i) in zip(patches.clinical, patches.clinical_place, strict=True):
        assert lungs[k, j : j + 8, i : i + 8].mean() >= 0.5
        normalised = (np.clip(voxels[k, j : j + 8, i : i + 8], -1000.0, 2500.0) + 1000.0) / 1750.0 - 1.0
        assert np.abs(patch / 32767.0 - normalised).max() <= 2e-5
    assert len(np.unique(patches.clinical_place[:, 1])) > 20


def test_patches_of_a_thin_slice_scan_lie_inside_the_lungs_that_are_found(real_data, micro, tmp_path):
    scan = read_volume(real_data / "clinical" / "rider_0117.nrrd")
    columns, rows, _ = scan.geometry.size_ijk
    part = scan.crop(Region((0, columns), (0, rows), (0, 12)))
    write_volume(part, tmp_path / "part.nrrd")
    settings = PatchSettings(patch_voxels=16, scale=2, patches_per_case=100)
    patches = patches_from_volumes(tmp_path / "patches", [tmp_path / "part.nrrd"], [micro], settings)
    lungs = segment_lungs(part).array_kji
    shares = [lungs[k, j : j + 16, i : i + 16].mean() for _, k, j, i in patches.clinical_place]
    assert min(shares) >= 0.5
    # the lungs are dark: less than half of all voxels can be tissue around them
    assert np.median(patches.clinical) < 0
    assert Batches(patches, 4, 1).at(0).clinical.shape == (4, 1, 16, 16)


def test_a_dicom_folder_gives_patches(real_data, micro, tmp_path):
    settings = PatchSettings(patch_voxels=16, scale=4, patches_per_case=20)
    patches = patches_from_volumes(tmp_path / "patches", [real_data / "dicom" / "lung_dx_a0002"], [micro], settings)
    assert patches.clinical.shape == (20, 16, 16)
    assert patches.sources[0]["file"].endswith("lung_dx_a0002")
