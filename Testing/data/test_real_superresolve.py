"""The command on every real scan: it finishes, and what it writes lies where the scan lies."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

pytestmark = pytest.mark.real_data

GIVEN = ("--psf-fwhm-mm", "1.1", "--noise-hu", "20")


def outer_corners_mm(image, first_ijk=(0, 0, 0), size_ijk=None):
    """Physical positions of the eight outer corners of a box of voxels, by SimpleITK alone."""
    size_ijk = image.GetSize() if size_ijk is None else size_ijk
    ends = [(first - 0.5, first + size - 0.5) for first, size in zip(first_ijk, size_ijk, strict=True)]
    return np.array([image.TransformContinuousIndexToPhysicalPoint(corner) for corner in itertools.product(*ends)])


def boxes_of(region):
    """First voxel and size of ``I0:I1,J0:J1,K0:K1``."""
    ranges = [tuple(map(int, part.split(":"))) for part in region.split(",")]
    return tuple(start for start, _ in ranges), tuple(stop - start for start, stop in ranges)


def check_extent(scan, result, region):
    """The outer corners of the region lie at the same physical points in both."""
    corners_mm = outer_corners_mm(scan, *boxes_of(region))
    np.testing.assert_allclose(outer_corners_mm(result), corners_mm, rtol=0, atol=1e-4)


def check_result(scan, path, region):
    """The result's grid, its extent, and that its blocks' means follow the scan; by SimpleITK and numpy alone."""
    result = sitk.ReadImage(str(path))
    first_ijk, size_ijk = boxes_of(region)
    assert result.GetSize() == (8 * size_ijk[0], 8 * size_ijk[1], size_ijk[2])
    assert result.GetPixelID() == sitk.sitkInt16
    check_extent(scan, result, region)
    coarse = sitk.GetArrayFromImage(sitk.RegionOfInterest(scan, size_ijk, first_ijk)).astype(float)
    coarse = np.maximum(coarse, -1024)
    fine = sitk.GetArrayFromImage(result).astype(float)
    means = fine.reshape(size_ijk[2], size_ijk[1], 8, size_ijk[0], 8).mean(axis=(2, 4))
    here = np.corrcoef(means.ravel(), coarse.ravel())[0, 1]
    moved = [np.corrcoef(np.roll(means, n, axis).ravel(), coarse.ravel())[0, 1] for axis in (1, 2) for n in (-1, 1)]
    assert here > 0.95
    assert here > max(moved)


def series_image(folder):
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


@pytest.mark.parametrize(
    ("name", "region"),
    [
        ("clinical/lidc_idri_1011.nrrd", "120:184,230:290,66:68"),
        ("clinical/rider_0117.nrrd", "100:160,200:260,0:2"),
        ("clinical/lungfcp_0001.nrrd", "150:210,220:280,50:52"),
        ("lung_mask/ct-64.nrrd", "6:60,8:56,30:34"),
        ("lung_mask/crop_ct_2slices.nrrd", "90:150,120:180,0:2"),
    ],
)
def test_a_region_of_every_scan_is_super_resolved_in_place(ctmicrosr, command_model, real_data, tmp_path, name, region):
    path = real_data / name
    outcome = ctmicrosr("superres", path, tmp_path / "out.nrrd", "--region", region, "--model", command_model, *GIVEN)
    assert (outcome.status, outcome.stderr) == (0, "")
    check_result(sitk.ReadImage(str(path)), tmp_path / "out.nrrd", region)


def test_a_corner_that_is_all_padding_stays_air(ctmicrosr, command_model, real_data, tmp_path):
    path, region = real_data / "clinical" / "lidc_idri_1011.nrrd", "488:512,496:512,132:133"
    outcome = ctmicrosr("superres", path, tmp_path / "out.nrrd", "--region", region, "--model", command_model, *GIVEN)
    assert (outcome.status, outcome.stderr) == (0, "")
    result = sitk.ReadImage(str(tmp_path / "out.nrrd"))
    check_extent(sitk.ReadImage(str(path)), result, region)
    assert np.abs(sitk.GetArrayFromImage(result) + 1024.0).mean() < 2 * 20


def test_a_region_of_the_dicom_series_is_super_resolved_in_place(ctmicrosr, command_model, real_data, tmp_path):
    folder = real_data / "dicom" / "lung_dx_a0002"
    region = "120:180,220:280,14:16"
    for name, source in (("folder", folder), ("file", folder / "1-07.dcm")):
        arguments = ("--region", region, "--model", command_model, *GIVEN)
        outcome = ctmicrosr("superres", source, tmp_path / f"{name}.nrrd", *arguments)
        assert (outcome.status, outcome.stderr) == (0, "")
    check_result(series_image(folder), tmp_path / "folder.nrrd", region)
    assert (tmp_path / "folder.nrrd").read_bytes() == (tmp_path / "file.nrrd").read_bytes()


def test_one_slice_of_every_transfer_syntax_gives_the_same_result(ctmicrosr, command_model, real_data, tmp_path):
    contents = set()
    files = sorted((real_data / "dicom" / "transfer_syntaxes").glob("*.dcm"))
    for file in files:
        output = tmp_path / f"{file.stem}.nrrd"
        arguments = ("--region", "200:232,200:232,0:1", "--model", command_model, *GIVEN)
        outcome = ctmicrosr("superres", file, output, *arguments)
        assert (outcome.status, outcome.stderr) == (0, "")
        contents.add(output.read_bytes())
    assert len(files) >= 7
    assert len(contents) == 1
    plain = sitk.ReadImage(str(real_data / "dicom" / "transfer_syntaxes" / "explicit_little_endian.dcm"))
    # SimpleITK takes the tag SpacingBetweenSlices for the thickness of the one slice, which matters along it only
    data = pydicom.dcmread(files[0])
    plain.SetSpacing((*plain.GetSpacing()[:2], float(data.SliceThickness)))
    check_result(plain, output, "200:232,200:232,0:1")


@pytest.mark.parametrize("name", ["wholeLung-64.nrrd", "lm-64.nrrd"])
def test_a_real_mask_takes_the_place_of_the_lungs(ctmicrosr, command_model, real_data, tmp_path, name):
    """Two slices of the coarse chest, with the mask that came with it."""
    folder = real_data / "lung_mask"
    for source in ("ct-64.nrrd", name):
        image = sitk.ReadImage(str(folder / source))
        sitk.WriteImage(image[..., 30:32], str(tmp_path / source))
    arguments = ("--mask", tmp_path / name, "--model", command_model, "--report", tmp_path / "r.json", *GIVEN)
    outcome = ctmicrosr("superres", tmp_path / "ct-64.nrrd", tmp_path / "out.nrrd", *arguments)
    assert (outcome.status, outcome.stderr) == (0, "")
    region = json.loads((tmp_path / "r.json").read_text())["region"]
    check_result(sitk.ReadImage(str(tmp_path / "ct-64.nrrd")), tmp_path / "out.nrrd", region)
    first_ijk, size_ijk = boxes_of(region)
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / name)))
    outside = mask.copy()
    outside[tuple(slice(f, f + n) for f, n in zip(first_ijk[::-1], size_ijk[::-1], strict=True))] = 0
    assert mask.any()
    assert not outside.any()


@pytest.mark.parametrize("name", ["wholeLung-64.nrrd", "lm-64.nrrd"])
def test_a_real_label_map_is_refused_as_a_scan(ctmicrosr, command_model, real_data, tmp_path, name):
    outcome = ctmicrosr("superres", real_data / "lung_mask" / name, tmp_path / "o.nrrd", "--model", command_model)
    assert (outcome.status, outcome.stdout, outcome.stderr.count("\n")) == (3, "", 1)
    assert "label map" in outcome.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "box"),
    [
        ("lung_mask/ct-64.nrrd", (slice(None), slice(None), slice(28, 36))),
        ("clinical/rider_0117.nrrd", (slice(40, 470, 3), slice(80, 420, 3), slice(10, 16))),
    ],
)
def test_the_lungs_of_a_real_chest_are_found_and_super_resolved(
    ctmicrosr, command_model, real_data, tmp_path, name, box
):
    """Cropped and, where fine, thinned out in-plane, so that it takes seconds; blur and noise are estimated."""
    image = sitk.ReadImage(str(real_data / name))[box]
    sitk.WriteImage(image, str(tmp_path / "chest.nrrd"))
    files = (tmp_path / "out.nrrd", "--report", tmp_path / "r.json")
    outcome = ctmicrosr("superres", tmp_path / "chest.nrrd", *files, "--model", command_model)
    assert (outcome.status, outcome.stderr) == (0, "")
    report = json.loads((tmp_path / "r.json").read_text())
    check_result(image, tmp_path / "out.nrrd", report["region"])
    _, size_ijk = boxes_of(report["region"])
    assert size_ijk[0] * image.GetSpacing()[0] > 150
    assert report["consistency"]["noise_hu"] > 0
    assert report["consistency"]["residual_rms_hu"] < 60


@pytest.mark.parametrize(
    ("name", "region"),
    [
        ("rider_0117", "0:64,100:164,40:41"),  # the circle where the field of view ends, cut off to padding
        ("lidc_idri_1011", "100:260,380:460,99:100"),  # the table's edge
        ("lungfcp_0001", "200:330,380:512,73:74"),
    ],
)
def test_edges_that_no_scanner_blurred_do_not_turn_into_waves(ctmicrosr, real_data, tmp_path, name, region):
    path = real_data / "clinical" / f"{name}.nrrd"
    given = ("--psf-fwhm-mm", "1.3", "--noise-hu", "18", "--model", "compact-8x", "--report", tmp_path / "report.json")
    outcome = ctmicrosr("superres", path, tmp_path / "out.nrrd", "--region", region, *given)
    assert outcome.status == 0
    fine = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out.nrrd")))
    assert fine.min() > -2500
    assert fine.max() < 3500
    consistency = json.loads((tmp_path / "report.json").read_text())["consistency"]
    assert consistency["residual_max_hu"] <= 3.5 * 18.0
    # away from those edges nothing is left out
    assert consistency["unexplained_share"] < 0.3


def test_inside_the_lungs_of_real_scans_every_voxel_is_made_consistent(real_data):
    from CTMicroSRLib import Region, read_volume, super_resolve

    volume = read_volume(real_data / "clinical" / "rider_0117.nrrd")
    region = Region((250, 330), (200, 280), (40, 42))
    result = super_resolve(volume, region=region, model="compact-8x", psf_fwhm_mm=1.3, noise_hu=18.0)
    assert result.report["consistency"]["unexplained_share"] == 0.0
    assert result.report["warnings"] == []


def test_a_point_spread_given_far_too_wide_is_told(real_data):
    from CTMicroSRLib import Region, read_volume, super_resolve

    volume = read_volume(real_data / "clinical" / "rider_0117.nrrd")
    region = Region((200, 330), (200, 330), (71, 72))
    result = super_resolve(volume, region=region, model="compact-8x", psf_fwhm_mm=4.0, noise_hu=18.0)
    (warning,) = (text for text in result.report["warnings"] if "narrower" in text)
    assert "4.00 mm" in warning
    assert result.volume.array_kji.max() < 3500
