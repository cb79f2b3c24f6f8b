"""The simulated clinical scanner: kernels, slices, noise, grids and refusals are what was asked for."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from CTMicroSRLib import Geometry, UsageError, Volume
from CTMicroSRLib.point_spread import FWHM_PER_SIGMA, scan_slice
from CTMicroSRLib.simulation.description import Description, Label, Specimen, Tubes
from CTMicroSRLib.simulation.kernels import KERNELS, RATIOS, Kernel
from CTMicroSRLib.simulation.noise import (
    coloured_noise,
    noise_correlation,
    noise_of_slices,
    noise_power,
    patient_noise_hu,
)
from CTMicroSRLib.simulation.scanner import ScannerSettings, clean_slice, reach_voxels, scan_specimen
from CTMicroSRLib.simulation.slices import SOFTNESS, slab_labels, slab_means, slab_weights, slice_weights

VOXEL_MM = 0.08


def block(array_kji, voxel_mm=VOXEL_MM, slice_mm=0.25, labels=None):
    """A specimen of given voxels, of parenchyma where no labels are given."""
    array = np.asarray(array_kji, np.float32)
    geometry = Geometry(array.shape[::-1], (voxel_mm, voxel_mm, slice_mm), (voxel_mm / 2, voxel_mm / 2, slice_mm / 2))
    kinds = np.full(array.shape, Label.PARENCHYMA, np.uint8) if labels is None else np.asarray(labels, np.uint8)
    extent = tuple(float(n * d) for n, d in zip(geometry.size_ijk, geometry.spacing_mm, strict=True))
    empty = Tubes.join([])
    return Specimen(Volume(array, geometry), Volume(kinds, geometry), Description(extent, empty, empty, empty), 0)


def lung(size=160, seed=0):
    """A slice between -1000 and 100 HU with edges and texture."""
    image = np.random.default_rng(seed).normal(-860.0, 30.0, (size, size))
    image[size // 3 : size // 2, size // 4 : size // 2] = 50.0
    image[:, -size // 8 :] = 100.0
    image[size // 2 : size // 2 + 9, size // 5 : size // 5 + 7] = -1000.0
    return image.astype(np.float32)


# Kernels


@given(st.floats(0.1, 2.0), st.floats(RATIOS[0] + 1e-6, RATIOS[1] - 1e-6))
def test_a_kernel_has_the_transfer_it_was_given_and_never_rises(mtf50, ratio):
    kernel = Kernel(mtf50, mtf50 * ratio)
    assert kernel.mtf(np.array([0.0, mtf50, mtf50 * ratio])) == pytest.approx([1.0, 0.5, 0.1], rel=1e-9)
    assert (np.diff(kernel.mtf(np.linspace(0.0, 3.0, 200))) <= 0).all()
    assert kernel.mtf(np.array([kernel.frequency_at(0.3)])) == pytest.approx([0.3])


@given(st.floats(0.3, 3.0))
def test_a_gaussian_kernel_is_the_gaussian_of_its_width(fwhm_mm):
    kernel = Kernel.gaussian(fwhm_mm)
    frequency = np.linspace(0.0, 1.5 / fwhm_mm, 30)
    sigma = fwhm_mm / FWHM_PER_SIGMA
    assert kernel.mtf(frequency) == pytest.approx(np.exp(-2.0 * (math.pi * sigma * frequency) ** 2), abs=1e-12)
    assert kernel.psf_fwhm_mm == pytest.approx(fwhm_mm)
    assert kernel.shape == pytest.approx(2.0)


def test_named_kernels_run_from_soft_to_sharp():
    sharpness = [kernel.mtf50_per_mm for kernel in KERNELS.values()]
    assert sharpness == sorted(sharpness)
    assert min(sharpness) >= 0.3
    assert max(sharpness) <= 0.8


def test_a_steep_kernel_overshoots_at_an_edge_and_a_gaussian_does_not():
    fine = np.full((320, 320), -900.0, np.float32)
    fine[:, 160:] = 100.0
    steep, gaussian = (
        clean_slice(fine, ScannerSettings(kernel), VOXEL_MM) for kernel in (Kernel(0.6, 0.85), Kernel.gaussian(0.7))
    )
    assert steep.max() > 115.0
    assert steep.min() < -915.0
    assert gaussian.max() == pytest.approx(100.0, abs=0.01)
    assert gaussian.min() == pytest.approx(-900.0, abs=0.01)


@pytest.mark.parametrize(
    ("mtf50", "mtf10"),
    [(0.0, 0.5), (-0.1, 0.5), (0.5, 0.5), (0.6, 0.5), (math.nan, 0.5), (0.4, math.inf), (0.4, 0.45), (0.4, 1.2)],
)
def test_an_impossible_kernel_is_refused(mtf50, mtf10):
    with pytest.raises(UsageError) as refused:
        Kernel(mtf50, mtf10)
    assert str(refused.value).endswith(".")


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_an_impossible_point_spread_is_refused(bad):
    with pytest.raises(UsageError, match="point spread"):
        Kernel.gaussian(bad)


# The image without noise


@pytest.mark.parametrize("fwhm_mm", [0.5, 0.9, 1.4, 2.0])
def test_a_gaussian_slice_is_the_one_that_consistency_makes(fwhm_mm, monkeypatch):
    """The same operator as point_spread.scan_slice, which cuts its Gaussian at 4 sigma."""
    fine = lung()
    width = (fwhm_mm / VOXEL_MM,) * 2
    scanned = clean_slice(fine, ScannerSettings(Kernel.gaussian(fwhm_mm)), VOXEL_MM)
    assert scanned.dtype == np.float32
    np.testing.assert_allclose(scanned, scan_slice(fine, 8, width), rtol=0, atol=0.07)
    monkeypatch.setattr("CTMicroSRLib.point_spread.SUPPORT_SIGMAS", 6.0)
    np.testing.assert_allclose(scanned, scan_slice(fine, 8, width), rtol=0, atol=0.001)


@settings(max_examples=20)
@given(st.sampled_from(sorted(KERNELS)), st.integers(0, 10_000))
def test_the_scanner_keeps_the_mean(name, seed):
    fine = np.full((320, 320), -900.0, np.float32)
    top, left = np.random.default_rng(seed).integers(130, 180, 2)
    fine[top : top + 25, left : left + 40] = 300.0
    scanned = clean_slice(fine, ScannerSettings(KERNELS[name]), VOXEL_MM)
    assert scanned.shape == (40, 40)
    # The faint tails of some kernels end beyond the slice.
    mass, found = (np.sum(image + 900.0, dtype=np.float64) for image in (fine, scanned))
    assert found * 64 == pytest.approx(mass, rel=0.01)
    flat = clean_slice(np.full((80, 80), -900.0, np.float32), ScannerSettings(KERNELS[name]), VOXEL_MM)
    np.testing.assert_allclose(flat, -900.0, rtol=0, atol=1e-3)


@settings(max_examples=10)
@given(st.sampled_from(sorted(KERNELS)), st.integers(-3, 3), st.integers(-3, 3))
def test_a_moved_object_moves_in_the_scan(name, down, across):
    fine = np.full((320, 320), -900.0, np.float32)
    fine[140:163, 150:190] = 300.0
    scanner = ScannerSettings(KERNELS[name])
    still, moved = (
        clean_slice(image, scanner, VOXEL_MM) for image in (fine, np.roll(fine, (8 * down, 8 * across), (0, 1)))
    )
    np.testing.assert_allclose(np.roll(still, (down, across), (0, 1))[4:-4, 4:-4], moved[4:-4, 4:-4], atol=0.5)


@pytest.mark.parametrize("name", KERNELS)
def test_a_block_shows_what_a_larger_one_shows_there(name):
    """Away from the border by the point spread's reach; what is left are the tails of a kernel that is not Gaussian."""
    scanner = ScannerSettings(KERNELS[name])
    large = lung(480)
    start, size = 80, 320
    part = clean_slice(large[start : start + size, start : start + size], scanner, VOXEL_MM)
    whole = clean_slice(large, scanner, VOXEL_MM)[start // 8 : (start + size) // 8, start // 8 : (start + size) // 8]
    inside = slice(border := math.ceil(reach_voxels(scanner.kernel, VOXEL_MM) / 8), -border)
    assert part[inside, inside].size > 0
    np.testing.assert_allclose(part[inside, inside], whole[inside, inside], rtol=0, atol=0.5)


@pytest.mark.parametrize("fwhm_mm", [0.7, 1.2, 1.8])
def test_the_scanners_point_spread_is_as_wide_as_asked(fwhm_mm):
    """An edge at all eight places within a pixel: the line spread's variance is the Gaussian's and the pixel's."""
    pixel_mm, scale, edge_at = 0.64, 8, 160
    positions, values = [], []
    for shift in range(scale):
        fine = np.zeros((8, 320), np.float32)
        fine[:, edge_at + shift :] = 1000.0
        scanned = clean_slice(fine, ScannerSettings(Kernel.gaussian(fwhm_mm), scale=scale), pixel_mm / scale)
        positions.append((np.arange(40) + 0.5) * pixel_mm - (edge_at + shift) * pixel_mm / scale)
        values.append(scanned[0])
    order = np.argsort(np.concatenate(positions))
    at, edge = np.concatenate(positions)[order], np.concatenate(values)[order]
    spread = np.diff(edge) / 1000.0
    middle = (at[1:] + at[:-1]) / 2
    assert spread.sum() == pytest.approx(1.0, abs=1e-3)
    mean = np.sum(spread * middle)
    sigma = math.sqrt(np.sum(spread * (middle - mean) ** 2) - pixel_mm**2 / 12.0)
    assert mean == pytest.approx(0.0, abs=0.01)
    assert sigma * FWHM_PER_SIGMA == pytest.approx(fwhm_mm, rel=0.02)


# Slices


def test_a_slice_is_sensitive_as_a_trapezoid():
    """Independent: the profile by numerical convolution of two boxes."""
    step_mm, thickness_mm = 0.01, 1.0
    weights, centres_mm = slab_weights(400, step_mm, thickness_mm, 0.7)
    z = (np.arange(400) + 0.5) * step_mm
    box, soft = np.ones(100) / 100, np.ones(round(100 * SOFTNESS)) / round(100 * SOFTNESS)
    profile = np.convolve(box, soft)
    for row, centre in zip(weights, centres_mm, strict=True):
        assert np.sum(row * z) == pytest.approx(centre, abs=1e-9)
        assert np.count_nonzero(row >= row.max() / 2) * step_mm == pytest.approx(thickness_mm, abs=2 * step_mm)
        first = round((centre - 0.5 * thickness_mm * (1 + SOFTNESS)) / step_mm)
        np.testing.assert_allclose(row[first : first + len(profile)], profile, atol=2e-3)


@given(
    st.integers(30, 150),
    st.sampled_from([0.078125, 0.1, 0.25]),
    st.floats(0.5, 5.0),
    st.floats(0.5, 5.0),
)
def test_slices_keep_means_and_ramps_and_lie_inside(planes, step_mm, thickness_mm, spacing_mm):
    base_mm = thickness_mm * (1 + SOFTNESS)
    if base_mm > planes * step_mm:
        with pytest.raises(UsageError, match="thicker"):
            slab_weights(planes, step_mm, thickness_mm, spacing_mm)
        return
    weights, centres_mm = slab_weights(planes, step_mm, thickness_mm, spacing_mm)
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=1e-12)
    np.testing.assert_allclose(np.diff(centres_mm), spacing_mm, atol=1e-9)
    assert (weights >= 0).all()
    assert centres_mm[0] - base_mm / 2 >= -1e-9
    assert centres_mm[-1] + base_mm / 2 <= planes * step_mm + 1e-4 * spacing_mm
    assert centres_mm[-1] + base_mm / 2 + spacing_mm > planes * step_mm
    # A block whose HU rise by 1 per mm shows where the slices are.
    np.testing.assert_allclose(weights @ ((np.arange(planes) + 0.5) * step_mm), centres_mm, atol=1e-6 + step_mm**2)


def test_slices_side_by_side_add_up_to_the_whole():
    weights, _ = slab_weights(128, 0.078125, 1.25, 1.25)
    together = weights.sum(axis=0)
    inner = together[20:-20]
    np.testing.assert_allclose(inner, 0.078125 / 1.25, rtol=1e-9)


def test_a_single_slice_may_lie_anywhere():
    weights = slice_weights(100, 0.1, 1.0, np.array([4.03]))
    assert weights.shape == (1, 100)
    assert np.sum(weights[0] * (np.arange(100) + 0.5) * 0.1) == pytest.approx(4.03, abs=1e-3)


def test_slices_of_a_block_are_its_means_in_the_right_place():
    fine = np.arange(16.0)[:, None, None] * np.ones((1, 8, 8))
    slabs = slab_means(block(fine).volume, thickness_mm=1.0, spacing_mm=0.5)
    assert slabs.array_kji.dtype == np.float32
    assert slabs.geometry.spacing_mm == pytest.approx((VOXEL_MM, VOXEL_MM, 0.5))
    for k in range(slabs.array_kji.shape[0]):
        z_mm = slabs.geometry.physical_point_mm((0.0, 0.0, float(k)))[2]
        assert slabs.array_kji[k, 0, 0] == pytest.approx(z_mm / 0.25 - 0.5, abs=1e-5)
    assert slabs.geometry.origin_mm[2] == pytest.approx(0.625)


def test_a_slices_label_is_what_its_planes_agree_on():
    labels = np.full((16, 8, 8), Label.PARENCHYMA, np.uint8)
    labels[:, 2, 2] = Label.ARTERY
    labels[6, 4, 4] = Label.AIRWAY_LUMEN
    volume = block(np.zeros((16, 8, 8)), labels=labels).labels
    found = slab_labels(volume, 1.0, 1.0).array_kji
    assert found.dtype == np.uint8
    assert (found[:, 2, 2] == Label.ARTERY).all()
    assert found[:, 4, 4].tolist() == [Label.PARENCHYMA, Label.MIXED, Label.PARENCHYMA]
    assert np.count_nonzero(found != Label.PARENCHYMA) == 4


@pytest.mark.parametrize(("thickness_mm", "match"), [(5.0, "thicker"), (0.6, "thinner")])
def test_slices_that_the_specimen_cannot_give_are_refused(thickness_mm, match):
    with pytest.raises(UsageError, match=match):
        slab_means(block(np.zeros((7, 8, 8)), slice_mm=0.8).volume, thickness_mm=thickness_mm, spacing_mm=1.0)


# Noise


@pytest.mark.parametrize("noise_hu", [3.0, 25.0])
@pytest.mark.parametrize("name", ["smooth", "bone"])
def test_noise_has_the_deviation_that_was_asked_for(noise_hu, name):
    rng = np.random.default_rng(0)
    scanner = ScannerSettings(KERNELS[name], noise_hu=noise_hu)
    noise = np.stack([coloured_noise(rng, scanner, 0.7, (64, 47)) for _ in range(60)])
    assert noise.shape == (60, 64, 47)
    assert noise.dtype == np.float32
    assert noise.std() == pytest.approx(noise_hu, rel=0.02)
    assert abs(noise.mean()) < 0.02 * noise_hu
    across_images = noise.std(axis=0)
    assert across_images[0].mean() == pytest.approx(across_images[32].mean(), rel=0.05)


@pytest.mark.parametrize("kernel", [Kernel.gaussian(0.8), KERNELS["bone"]])
def test_noise_has_the_folded_spectrum_of_filtered_back_projection(kernel):
    """Ramp times squared MTF on a grid three times finer, folded by taking every third, seen through a window."""
    pixel_mm, n, fine = 0.7, 64, 3
    rng = np.random.default_rng(1)
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(n * fine, pixel_mm / fine), np.fft.fftfreq(n * fine, pixel_mm / fine)))
    power = f * kernel.mtf(f) ** 2
    folded = (power / power.mean()).reshape(fine, n, fine, n).sum(axis=(0, 2)) / fine**2
    window = np.hanning(n)[:, None] * np.hanning(n)[None, :]
    seen = np.abs(np.fft.fft2(window)) ** 2
    expected = np.fft.ifft2(np.fft.fft2(folded) * np.fft.fft2(seen)).real / n**2
    found = np.zeros((n, n))
    for _ in range(200):
        noise = coloured_noise(rng, ScannerSettings(kernel, noise_hu=1.0), pixel_mm, (n, n))
        found += np.abs(np.fft.fft2(noise * window)) ** 2 / 200
    radial = np.hypot(*np.meshgrid(np.fft.fftfreq(n, pixel_mm), np.fft.fftfreq(n, pixel_mm)))
    bins = np.digitize(radial, np.linspace(0.05, 1.0, 10))
    for band in range(1, 10):
        assert found[bins == band].mean() == pytest.approx(expected[bins == band].mean(), rel=0.04)


@pytest.mark.parametrize(("thickness_mm", "spacing_mm"), [(1.0, 0.5), (1.0, 1.0), (2.5, 1.0)])
def test_slices_share_noise_as_they_share_planes(thickness_mm, spacing_mm):
    weights, _ = slab_weights(96, 0.1, thickness_mm, spacing_mm)
    scanner = ScannerSettings(noise_hu=10.0)
    noise = noise_of_slices(np.random.default_rng(2), scanner, 0.65, (96, 96), weights).reshape(len(weights), -1)
    expected = noise_correlation(weights)
    np.testing.assert_allclose(np.corrcoef(noise), expected, atol=0.06)
    np.testing.assert_allclose(noise.std(axis=1), 10.0, rtol=0.05)
    overlap = max(0.0, 1.0 - spacing_mm / thickness_mm)
    assert expected[0, 1] == pytest.approx(overlap, abs=0.08)
    assert expected[0, 1] > (0.0 if spacing_mm < thickness_mm * (1 + SOFTNESS) else -1e-12)


@settings(max_examples=30)
@given(st.floats(200.0, 500.0), st.floats(200.0, 400.0))
def test_a_patients_noise_is_the_mean_over_his_rays(width_mm, depth_mm):
    scanner = ScannerSettings(KERNELS["soft"], noise_hu=12.0, patient_mm=(width_mm, depth_mm))
    half = noise_power(scanner, 0.7, (96, 96))
    count = np.full(half.shape[1], 2.0)
    count[[0, -1]] = 1.0
    assert 12.0 * math.sqrt(np.sum(half * count) / 96**2) == pytest.approx(patient_noise_hu(scanner), rel=0.02)


def test_a_round_patient_of_320_mm_has_the_noise_and_a_larger_one_twice_as_much_per_72_mm():
    assert patient_noise_hu(ScannerSettings(noise_hu=15.0)) == pytest.approx(15.0)
    larger_mm = 320.0 + 2 * math.log(2.0) / 0.0193
    large = ScannerSettings(noise_hu=15.0, patient_mm=(larger_mm, larger_mm))
    assert patient_noise_hu(large) == pytest.approx(30.0)


def test_a_wide_patient_has_lateral_streaks():
    """Noise varies faster from row to row than along a row: rays from side to side are the noisy ones."""
    scanner = ScannerSettings(noise_hu=10.0, patient_mm=(420.0, 260.0))
    noise = np.stack([coloured_noise(np.random.default_rng(n), scanner, 0.7, (96, 96)) for n in range(8)])
    assert noise.std() == pytest.approx(patient_noise_hu(scanner), rel=0.03)
    spectrum = np.mean(np.abs(np.fft.fft2(noise)) ** 2, axis=0)
    down, across = spectrum[8:30, :4].mean(), spectrum[:4, 8:30].mean()
    assert down / across == pytest.approx(math.exp(0.0193 * (420.0 - 260.0)), rel=0.35)


# The whole scan


def test_scan_truth_and_labels_lie_on_grids_of_one_extent():
    specimen = block(np.random.default_rng(0).normal(-850, 30, (16, 80, 96)))
    scan = scan_specimen(specimen, ScannerSettings(slice_thickness_mm=1.25, slice_spacing_mm=0.75), 0)
    fine = scan.clinical.geometry.refine((8, 8, 1))
    assert fine.size_ijk == scan.truth.geometry.size_ijk == (96, 80, 4)
    np.testing.assert_allclose(fine.origin_mm, scan.truth.geometry.origin_mm, rtol=0, atol=1e-9)
    np.testing.assert_allclose(fine.spacing_mm, scan.truth.geometry.spacing_mm, rtol=1e-12)
    assert scan.labels.geometry == scan.truth.geometry
    assert scan.clinical.geometry.spacing_mm == pytest.approx((0.64, 0.64, 0.75))
    assert (scan.clinical.array_kji.dtype, scan.truth.array_kji.dtype) == (np.int16, np.float32)
    # The block's faces are at zero, whatever the pixel.
    assert scan.clinical.geometry.origin_mm == pytest.approx((0.32, 0.32, 1.25 * (1 + SOFTNESS) / 2))


@settings(max_examples=10)
@given(st.integers(0, 7), st.integers(0, 7))
def test_a_shifted_grid_of_pixels_shows_the_same_object_elsewhere(down, across):
    fine = np.broadcast_to(lung(240), (6, 240, 240))
    scanner = ScannerSettings(Kernel.gaussian(0.8), noise_hu=0.0, shift_voxels_ji=(down, across))
    scan = scan_specimen(block(fine), scanner, 0)
    rows, columns = 30 - (down > 0), 30 - (across > 0)
    assert scan.clinical.array_kji.shape == (1, rows, columns)
    assert scan.clinical.geometry.refine((8, 8, 1)).size_ijk == scan.truth.geometry.size_ijk
    assert scan.truth.geometry.origin_mm[:2] == pytest.approx(
        (VOXEL_MM * (across + 0.5), VOXEL_MM * (down + 0.5)), abs=1e-9
    )
    expected = fine[0, down : down + 8 * rows, across : across + 8 * columns]
    np.testing.assert_allclose(scan.truth.array_kji[0], expected, atol=1e-3)
    rescanned = clean_slice(np.ascontiguousarray(expected), ScannerSettings(Kernel.gaussian(0.8)), VOXEL_MM)
    np.testing.assert_allclose(scan.clinical.array_kji[0, 4:-4, 4:-4], rescanned[4:-4, 4:-4], atol=0.51)


def test_a_scan_without_noise_shows_the_clean_slices_and_12_bits_hold_it():
    fine = np.random.default_rng(0).normal(-800.0, 100.0, (12, 80, 80))
    fine[:, :30, :30], fine[:, 50:, 50:] = 5000.0, -1800.0
    scan = scan_specimen(block(fine), ScannerSettings(noise_hu=0.0), 0)
    clean = clean_slice(scan.truth.array_kji[1], ScannerSettings(noise_hu=0.0), VOXEL_MM)
    np.testing.assert_allclose(scan.clinical.array_kji[1], np.clip(clean, -1024, 3071), rtol=0, atol=0.51)
    assert (scan.clinical.array_kji.min(), scan.clinical.array_kji.max()) == (-1024, 3071)


def test_the_noise_of_a_scan_is_what_is_added_to_it():
    specimen = block(np.full((48, 192, 192), -700.0), slice_mm=0.25)
    scanner = ScannerSettings(noise_hu=20.0, slice_thickness_mm=1.25, slice_spacing_mm=0.5)
    added = scan_specimen(specimen, scanner, 7).clinical.array_kji + 700.0
    assert added.std() == pytest.approx(20.0, rel=0.05)
    weights, _ = slab_weights(48, 0.25, 1.25, 0.5)
    found = np.corrcoef(added.reshape(len(added), -1))
    assert np.mean(np.diag(found, 1)) == pytest.approx(noise_correlation(weights)[0, 1], abs=0.03)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    specimen = block(np.broadcast_to(lung(80), (8, 80, 80)))
    one, again, other = (scan_specimen(specimen, ScannerSettings(), seed) for seed in (3, 3, 4))
    assert one.clinical.array_kji.tobytes() == again.clinical.array_kji.tobytes()
    assert one.clinical.array_kji.tobytes() != other.clinical.array_kji.tobytes()
    assert one.truth.array_kji.tobytes() == other.truth.array_kji.tobytes()


SCAN_AND_HASH = """
import hashlib, numpy as np
from CTMicroSRLib import Geometry, Volume
from CTMicroSRLib.simulation.description import Description, Specimen, Tubes
from CTMicroSRLib.simulation.kernels import KERNELS
from CTMicroSRLib.simulation.micro_scanner import MicroScannerSettings, scan_micro
from CTMicroSRLib.simulation.scanner import ScannerSettings, scan_specimen
array = np.random.default_rng(0).normal(-800, 90, (40, 256, 256)).astype(np.float32)
geometry, none = Geometry((256, 256, 40), (0.08, 0.08, 0.08)), Tubes.join([])
labels = Volume((array > -800).astype(np.uint8), geometry)
specimen = Specimen(Volume(array, geometry), labels, Description((20.48, 20.48, 3.2), none, none, none), 0)
scan = scan_specimen(specimen, ScannerSettings(KERNELS["medium"], slice_spacing_mm=0.5, patient_mm=(380, 260)), 5)
micro = scan_micro(specimen, MicroScannerSettings(), 5)
content = b"".join(v.array_kji.tobytes() for v in (scan.clinical, scan.truth, scan.labels, micro))
print(hashlib.sha256(content).hexdigest())
"""


def test_both_scans_are_the_same_bytes_on_one_thread_and_on_two(repository):
    sums = []
    for threads in ("1", "2"):
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        environment = os.environ | dict.fromkeys(names, threads)
        command = [sys.executable, "-c", SCAN_AND_HASH]
        done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=True)
        sums.append(done.stdout.strip())
    assert len(sums[0]) == hashlib.sha256().digest_size * 2
    assert sums[0] == sums[1]


@pytest.mark.parametrize(
    "bad",
    [
        {"slice_thickness_mm": 0.4},
        {"slice_thickness_mm": math.nan},
        {"slice_spacing_mm": 5.5},
        {"slice_spacing_mm": -1.0},
        {"noise_hu": -1.0},
        {"noise_hu": math.nan},
        {"noise_hu": math.inf},
        {"scale": 0},
        {"shift_voxels_ji": (8, 0)},
        {"shift_voxels_ji": (0, -1)},
        {"patient_mm": (50.0, 300.0)},
        {"patient_mm": (300.0, math.nan)},
    ],
)
def test_an_impossible_scanner_is_refused_in_one_sentence(bad):
    with pytest.raises(UsageError) as refused:
        ScannerSettings(**bad)
    assert str(refused.value).endswith(".")
    assert ". " not in str(refused.value)


@pytest.mark.parametrize(("shape", "match"), [((12, 20, 24), "multiple"), ((12, 8, 16), "shifted")])
def test_a_specimen_that_holds_no_whole_pixels_is_refused(shape, match):
    with pytest.raises(UsageError, match=match):
        scan_specimen(block(np.zeros(shape)), ScannerSettings(shift_voxels_ji=(3, 0)), 0)
