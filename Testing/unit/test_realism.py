"""Measures of realism on images whose answer is known."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage, special

from CTMicroSRLib.errors import RefusedInputError, UsageError
from CTMicroSRLib.evaluation import realism
from CTMicroSRLib.evaluation.realism_edges import airway_edges, vessel_edges
from CTMicroSRLib.evaluation.realism_figure import draw_comparison
from CTMicroSRLib.evaluation.realism_measures import Curve, Measures, Part, lung_noise, measure
from CTMicroSRLib.evaluation.realism_noise import (
    cut_patches,
    measure_spectrum,
    soft_tissue_patches,
    window_share,
)
from CTMicroSRLib.evaluation.realism_pieces import find_holes, find_pieces, refine_slice
from CTMicroSRLib.evaluation.realism_table import TITLES, compare, markdown, to_json, write_comparison
from CTMicroSRLib.simulation.cases import CaseSettings
from CTMicroSRLib.simulation.description import Label
from CTMicroSRLib.volume import Geometry, Volume

PIXEL_MM = 0.7
LUNG_HU = -880.0


def disc(shape, centre_ji, radius):
    """How much of each pixel a disc covers, from 16 x 16 points; lengths in pixels."""
    points = (np.arange(16) + 0.5) / 16 - 0.5
    j = np.add.outer(np.arange(shape[0]), points).ravel() - centre_ji[0]
    i = np.add.outer(np.arange(shape[1]), points).ravel() - centre_ji[1]
    inside = j[:, None] ** 2 + i[None, :] ** 2 <= radius**2
    return inside.reshape(shape[0], 16, shape[1], 16).mean(axis=(1, 3))


def volume_of(planes, pixel_mm=PIXEL_MM, slice_mm=1.0):
    array = np.asarray(planes, dtype=np.float32)
    return Volume(array, Geometry(array.shape[::-1], (pixel_mm, pixel_mm, slice_mm)))


def whole(planes, pixel_mm=PIXEL_MM):
    volume = volume_of(planes, pixel_mm)
    return Part(volume, np.ones(volume.array_kji.shape, dtype=bool))


def filtered_noise(rng, shape, pixel_mm, filter_of_frequency):
    """Gaussian noise whose power is the square of the filter, and a pixel's variance."""
    frequency = np.hypot(np.fft.fftfreq(shape[-2], pixel_mm)[:, None], np.fft.fftfreq(shape[-1], pixel_mm)[None, :])
    gain = filter_of_frequency(frequency)
    noise = np.fft.ifft2(np.fft.fft2(rng.standard_normal(shape)) * gain).real
    return noise.astype(np.float32), float(np.mean(gain**2))


# Pieces


@pytest.mark.parametrize("diameter_mm", [1.0, 2.0, 3.5, 6.0])
def test_a_disc_has_its_diameter_and_place(diameter_mm):
    inside = disc((60, 80), (31.3, 44.6), diameter_mm / 0.25 / 2) > 0.5
    (found,) = [find_pieces(inside, 0.25)]
    assert len(found) == 1
    assert found.diameter_mm[0] == pytest.approx(diameter_mm, abs=0.06)
    assert found.centre_ji[0] == pytest.approx((31.3, 44.6), abs=0.2)


def test_a_bar_is_as_wide_as_it_is_narrow():
    inside = np.zeros((60, 90), dtype=bool)
    inside[20:28, 10:80] = True
    found = find_pieces(inside, 0.25)
    assert found.diameter_mm[0] == pytest.approx(2.0, abs=0.26)
    assert found.area_mm2[0] == pytest.approx(8 * 70 * 0.25**2)


def test_a_fork_is_as_wide_as_its_limbs():
    j, i = np.mgrid[:80, :80]
    limbs = [np.abs(i - 40 - slope * (j - 40)) <= 3 for slope in (0.7, -0.7)]
    inside = ((limbs[0] | limbs[1]) & (j >= 40)) | ((np.abs(i - 40) <= 3) & (j < 41))
    found = find_pieces(inside & (j > 5) & (j < 75), 0.25)
    assert len(found) == 1
    # Seven pixels, and where the limbs part the fork is wider.
    assert 1.5 < found.diameter_mm[0] < 3.0


def test_pieces_are_counted_one_by_one():
    inside = sum(disc((90, 90), (15 + 20 * r, 15 + 20 * c), 3.0) for r in range(4) for c in range(4)) > 0.5
    assert len(find_pieces(inside, 0.25)) == 16
    assert len(find_pieces(np.zeros((9, 9), dtype=bool), 0.25)) == 0


def test_a_closed_ring_has_a_hole_and_an_open_one_has_none():
    hole = disc((60, 60), (30.3, 29.6), 10) > 0.5
    ring = (disc((60, 60), (30, 30), 14) > 0.5) & ~hole
    found = find_holes(ring, 0.25)
    assert found.area_mm2 == pytest.approx([hole.sum() * 0.25**2])
    assert found.diameter_mm == pytest.approx([5.0], abs=0.06)
    ring[28:32, 30:] = False
    assert len(find_holes(ring, 0.25)) == 0


def test_a_refined_slice_keeps_places_and_values():
    j, i = np.mgrid[:40, :50]
    wave = np.cos(0.3 * j + 0.2 * i)
    fine, factor = refine_slice(wave.astype(np.float32), 0.75)
    assert factor == 3
    fine_j, fine_i = (np.arange(n) / 3 - 1 / 3 for n in fine.shape)
    expected = np.cos(0.3 * fine_j[:, None] + 0.2 * fine_i[None, :])
    assert np.abs(fine - expected)[9:-9, 9:-9].max() < 0.01


# Edges


@pytest.mark.parametrize("sigma_mm", [0.5, 0.8])
def test_the_rise_of_a_vessel_is_that_of_its_blur(sigma_mm):
    image = LUNG_HU + 900 * disc((70, 70), (34.4, 35.7), 4.5 / PIXEL_MM)
    image = ndimage.gaussian_filter(image, sigma_mm / PIXEL_MM).astype(np.float32)
    found = vessel_edges(image, PIXEL_MM, find_pieces(image > -430, PIXEL_MM))
    assert len(found.rise_mm) == 16
    assert np.median(found.peak_hu) == pytest.approx(20.0, abs=5.0)
    # The pixel's own extent adds its second moment.
    total = math.sqrt(sigma_mm**2 + PIXEL_MM**2 / 12)
    assert np.median(found.rise_mm) == pytest.approx(2 * math.sqrt(2) * special.erfinv(0.8) * total, rel=0.03)


def test_the_rise_of_a_lumen_is_that_of_its_blur():
    inner, outer = (disc((80, 80), (40.2, 39.5), r / PIXEL_MM) for r in (4.0, 9.0))
    image = ndimage.gaussian_filter(LUNG_HU + 800 * outer - 920 * inner, 0.6 / PIXEL_MM).astype(np.float32)
    holes = find_holes(image > -780, PIXEL_MM)
    found = airway_edges(image, PIXEL_MM, holes)
    assert len(found.rise_mm) == 16
    total = math.sqrt(0.6**2 + PIXEL_MM**2 / 12)
    assert np.median(found.rise_mm) == pytest.approx(2 * math.sqrt(2) * special.erfinv(0.8) * total, rel=0.04)
    assert np.median(found.peak_hu) == pytest.approx(LUNG_HU + 800, abs=10.0)


def test_a_vessel_beside_another_is_not_measured_on_that_side():
    image = LUNG_HU + 900 * (disc((70, 70), (35, 25), 3) + disc((70, 70), (35, 33), 3))
    image = ndimage.gaussian_filter(image, 0.8).astype(np.float32)
    pieces = find_pieces(image > -430, PIXEL_MM)
    assert len(pieces) == 2
    assert 16 < len(vessel_edges(image, PIXEL_MM, pieces).rise_mm) < 32


def test_a_vessel_at_the_border_of_the_image_is_not_measured_beyond_it():
    image = LUNG_HU + 900 * disc((50, 50), (5, 25), 3.5)
    image = ndimage.gaussian_filter(image, 0.8).astype(np.float32)
    found = vessel_edges(image, PIXEL_MM, find_pieces(image > -430, PIXEL_MM))
    assert 0 < len(found.rise_mm) < 16
    assert np.isfinite(found.rise_mm).all()


# Noise


def test_white_noise_has_a_flat_spectrum_of_the_right_height():
    rng = np.random.default_rng(0)
    spectrum = measure_spectrum(rng.normal(0, 20, (400, 16, 16)).astype(np.float32), PIXEL_MM)
    # The detrending takes from the lowest frequencies.
    assert spectrum.power[3:] == pytest.approx(np.full(5, 400 * PIXEL_MM**2), rel=0.05)
    assert spectrum.frequency[-1] == pytest.approx(0.5 / PIXEL_MM, rel=0.02)


def test_ramp_noise_has_its_peak_and_power():
    rng = np.random.default_rng(1)
    sigma_mm = 0.55

    def gain(f):
        return 30 * np.sqrt(f) * np.exp(-0.5 * (2 * np.pi * sigma_mm * f) ** 2)

    noise, variance = filtered_noise(rng, (30, 96, 96), PIXEL_MM, gain)
    patches = np.concatenate([cut_patches(plane, 24, 24) for plane in noise])
    spectrum = measure_spectrum(patches, PIXEL_MM)
    expected = gain(spectrum.frequency) ** 2 * PIXEL_MM**2
    assert spectrum.power[2:8] == pytest.approx(expected[2:8], rel=0.08)
    assert spectrum.peak == pytest.approx(1 / (2 * np.pi * sigma_mm * math.sqrt(2)), rel=0.06)
    assert spectrum.noise_hu == pytest.approx(math.sqrt(variance), rel=0.04)


def test_a_few_patches_with_an_edge_do_not_change_the_spectrum():
    rng = np.random.default_rng(2)
    patches = rng.normal(0, 10, (300, 16, 16)).astype(np.float32)
    before = measure_spectrum(patches, PIXEL_MM).power
    patches[:9, :, 9:] += 200
    # Three of a hundred move the median by a fiftieth of the patches; they would multiply the mean.
    assert measure_spectrum(patches, PIXEL_MM).power == pytest.approx(before, rel=0.08)


def test_too_few_patches_have_no_spectrum():
    assert measure_spectrum(np.zeros((0, 16, 16), np.float32), PIXEL_MM) is None


def test_patches_of_soft_tissue_are_uniform_and_outside_the_lungs():
    rng = np.random.default_rng(3)
    image = rng.normal(50, 15, (128, 128)).astype(np.float32)
    image[:, 64:] -= 900
    image[64:, 30:34] += 200
    lung = image < -500
    patches = soft_tissue_patches(image, lung, 16, 15.0)
    assert len(patches) > 10
    assert patches.mean(axis=(1, 2)) == pytest.approx(np.full(len(patches), 50.0), abs=5)
    assert patches.std(axis=(1, 2)).max() < 20
    assert len(soft_tissue_patches(image, lung, 16, 1.0)) == 0


def test_a_window_sees_all_of_white_noise_and_less_of_slow_noise():
    rng = np.random.default_rng(4)
    white = rng.normal(0, 10, (200, 16, 16)).astype(np.float32)
    assert window_share(white, 7) == pytest.approx(1.0, abs=0.03)
    slow = ndimage.gaussian_filter(rng.normal(0, 10, (200, 64, 64)), (0, 2, 2))[:, 20:36, 20:36].astype(np.float32)
    assert window_share(slow, 5) < 0.8


def test_the_lungs_noise_is_told_from_the_top_of_the_band():
    rng = np.random.default_rng(5)

    def blur(f):
        return np.exp(-0.5 * (2 * np.pi * 0.55 * f) ** 2)

    noise, variance = filtered_noise(rng, (40, 64, 64), PIXEL_MM, lambda f: 30 * np.sqrt(f) * blur(f))
    other, _ = filtered_noise(rng, (40, 64, 64), PIXEL_MM, lambda f: 30 * np.sqrt(f) * blur(f))
    texture, _ = filtered_noise(rng, (40, 64, 64), PIXEL_MM, lambda f: 15 * blur(f) * (f < 0.4))
    spectra = [
        measure_spectrum(np.concatenate([cut_patches(plane, 16, 16) for plane in planes]), PIXEL_MM)
        for planes in (noise, 0.6 * other + texture)
    ]
    found = lung_noise(*spectra, math.sqrt(variance))
    assert found == pytest.approx(0.6 * math.sqrt(variance), rel=0.05)
    assert math.isnan(lung_noise(None, spectra[1], 20.0))


# All measures


def test_a_plain_lung_gives_back_its_noise_and_level():
    rng = np.random.default_rng(6)
    planes = rng.normal(LUNG_HU, 20, (6, 72, 72))
    noise = rng.normal(0, 20, (6, 48, 48)).astype(np.float32)
    found = measure([whole(planes)], 20.0, noise).numbers
    assert found["mode_hu"] == pytest.approx(LUNG_HU, abs=2)
    assert found["percentile_50_hu"] == pytest.approx(LUNG_HU, abs=1)
    assert found["percentile_95_hu"] == pytest.approx(LUNG_HU + 1.645 * 20, abs=1.5)
    assert found["lung_noise_hu"] == pytest.approx(20, rel=0.05)
    assert found["local_std_hu_50"] == pytest.approx(20, rel=0.03)
    assert found["texture_hu_50"] < 6
    assert found["plain_share"] == 1.0
    assert found["vessels_area"] == 0.0
    assert math.isnan(found["vessel_rise_mm_50"])
    assert found["lumina"] == 0.0


def test_texture_is_told_from_noise():
    rng = np.random.default_rng(7)
    texture, variance = filtered_noise(rng, (12, 72, 72), PIXEL_MM, lambda f: 60 * np.exp(-((f / 0.25) ** 2)))
    noise = rng.normal(0, 15, (12, 72, 72)).astype(np.float32)
    found = measure([whole(LUNG_HU + texture + noise)], 15.0, rng.normal(0, 15, (8, 48, 48)).astype(np.float32))
    assert found.numbers["lung_noise_hu"] == pytest.approx(15, rel=0.05)
    windows = cut_patches(texture[0], 7, 3).var(axis=(1, 2), ddof=1)
    assert math.sqrt(variance) > 10
    assert found.numbers["texture_hu_50"] == pytest.approx(math.sqrt(np.median(windows)), rel=0.15)


def lung_with_vessels(diameters_mm, rows=4):
    """A slice with a round vessel of 40 HU every 14 mm, blurred as by a sharp scanner."""
    step = 20
    image = np.full((step * rows, step * (len(diameters_mm) // rows)), LUNG_HU)
    for n, diameter_mm in enumerate(diameters_mm):
        centre = (step * (n % rows) + 9.7, step * (n // rows) + 10.2)
        image += (40 - LUNG_HU) * disc(image.shape, centre, diameter_mm / PIXEL_MM / 2)
    return ndimage.gaussian_filter(image, 0.3 / PIXEL_MM)


def test_vessels_are_counted_by_their_diameter():
    diameters_mm = [1.5] * 8 + [2.5] * 6 + [4.0] * 4 + [6.5] * 2
    plane = lung_with_vessels(diameters_mm)
    found = measure([whole([plane, plane])], 10.0).numbers
    lung_cm2 = plane.size * PIXEL_MM**2 / 100
    counts = [found[f"vessels_{name}"] * lung_cm2 for name in ("<1", "1-2", "2-3", "3-5", ">5")]
    assert counts == pytest.approx([0, 8, 6, 4, 2], abs=1e-6)
    area = sum(math.pi * (d / 2) ** 2 for d in diameters_mm)
    assert found["vessels_area"] * lung_cm2 * 100 == pytest.approx(area, rel=0.05)
    assert found["vessel_peak_hu"] == pytest.approx(40, abs=10)
    assert found["faint_vessels_area"] > found["vessels_area"]


def test_blocks_are_measured_together():
    few, many = lung_with_vessels([1.5] * 20), lung_with_vessels([4.0] * 20)
    lung_cm2 = 2 * few.size * PIXEL_MM**2 / 100
    found = measure([whole([few]), whole([many])], 10.0).numbers
    assert found["vessels_1-2"] * lung_cm2 == pytest.approx(20)
    assert found["vessels_3-5"] * lung_cm2 == pytest.approx(20)


def test_what_is_not_lung_is_left_out():
    plane = lung_with_vessels([1.5] * 20)
    lung = np.ones((1, *plane.shape), dtype=bool)
    wide = np.pad(plane, ((0, 0), (0, 40)), constant_values=50.0)
    outside = np.pad(lung, ((0, 0), (0, 0), (0, 40)))
    alone = measure([Part(volume_of([plane]), lung)], 10.0).numbers
    beside = measure([Part(volume_of([wide]), outside)], 10.0).numbers
    assert beside["vessels_1-2"] == pytest.approx(alone["vessels_1-2"], rel=0.1)
    assert beside["percentile_95_hu"] < -800


def test_airways_are_found_with_their_lumen():
    image = np.full((80, 80), LUNG_HU)
    for centre in ((20, 20), (20, 60), (60, 40)):
        image += 700 * disc(image.shape, centre, 4.5 / PIXEL_MM / 2 + 1.5)
        image -= 800 * disc(image.shape, centre, 4.5 / PIXEL_MM / 2)
    found = measure([whole([ndimage.gaussian_filter(image, 0.3 / PIXEL_MM)])], 10.0).numbers
    assert found["lumina"] * image.size * PIXEL_MM**2 / 100 == pytest.approx(3)
    assert found["lumina_mm"] == pytest.approx(4.5, abs=0.6)
    assert found["airway_rise_mm_50"] < 1.5


def test_every_number_has_a_title_and_the_other_way_round():
    found = measure([whole([lung_with_vessels([2.5] * 20)])], 10.0)
    assert set(found.numbers) == set(TITLES)


def test_no_lung_is_refused():
    volume = volume_of(np.zeros((3, 40, 40)))
    with pytest.raises(RefusedInputError):
        measure([Part(volume, np.zeros((3, 40, 40), dtype=bool))], 10.0)


def test_a_sliver_of_lung_is_refused():
    volume = volume_of(np.full((3, 40, 40), LUNG_HU))
    lung = np.zeros((3, 40, 40), dtype=bool)
    lung[:, 20:23] = True
    with pytest.raises(RefusedInputError):
        measure([Part(volume, lung)], 10.0)


# The simulated side


def test_the_wall_of_a_block_is_not_lung():
    clinical = volume_of(np.full((2, 32, 32), LUNG_HU))
    clinical.array_kji[:, :, 24:] = 40.0
    clinical.array_kji[:, 10:13, 5:8] = 40.0
    labels = np.full((2, 128, 128), Label.PARENCHYMA, dtype=np.uint8)
    labels[:, :, 26 * 4 :] = Label.SOFT_TISSUE
    labels[:, 40:52, 20:32] = Label.ARTERY
    fine = Volume(labels, clinical.geometry.refine((4, 4, 1)))
    lung = realism.lung_of_block(clinical, fine)
    expected = np.ones((2, 32, 32), dtype=bool)
    expected[:, :, 24:] = False
    assert (lung == expected).all()


def test_without_labels_the_wall_is_told_by_its_thickness():
    clinical = volume_of(np.full((2, 48, 48), LUNG_HU))
    clinical.array_kji[:, :, 30:] = 40.0
    clinical.array_kji[:, 20:24, :20] = 40.0
    lung = realism.lung_of_block(clinical, None)
    assert not lung[:, :, 31:].any()
    assert lung[:, :, :29].all()


@pytest.fixture
def fake_cases(monkeypatch):
    """Blocks made at once, with plain noise, in place of grown ones; the seeds that were asked for."""
    asked = []

    def make_case(settings, seed):
        asked.append((settings, seed))
        rng = np.random.default_rng(seed)
        shape = (max(1, round(settings.depth_mm / settings.slice_mm)), settings.size_voxels, settings.size_voxels)
        array = LUNG_HU + settings.noise_hu * rng.standard_normal(shape)
        case = type("Case", (), {})()
        case.clinical = volume_of(array, settings.pixel_mm, settings.slice_mm)
        return case

    monkeypatch.setattr(realism, "make_case", make_case)
    return asked


def test_simulated_blocks_have_the_settings_seeds_and_noise_that_were_asked_for(fake_cases):
    settings = CaseSettings(pixel_mm=0.7, noise_hu=12.0, size_voxels=48, depth_mm=4.0)
    found = realism.simulate_alike(settings, 3, 100)
    assert [seed for s, seed in fake_cases if s == settings] == [100, 101, 102]
    assert found.numbers["lung_noise_hu"] == pytest.approx(12, rel=0.1)
    # The first is made once more, without noise.
    assert [(s.noise_hu, seed) for s, seed in fake_cases if s != settings] == [(0.0, 100)]
    assert found.numbers["soft_tissue_centroid"] > 0.4
    assert found.numbers == pytest.approx(realism.simulate_alike(settings, 3, 100).numbers, nan_ok=True)


def test_no_blocks_are_refused(fake_cases):
    with pytest.raises(UsageError):
        realism.simulate_alike(CaseSettings(), 0, 0)


@pytest.mark.parametrize(("spacing_mm", "slices"), [((0.86, 0.86, 2.5), 4), ((0.65, 0.65, 0.8), 9)])
def test_matched_settings_are_the_scans_own(spacing_mm, slices):
    volume = Volume(np.zeros((4, 8, 8), np.int16), Geometry((8, 8, 4), spacing_mm))
    numbers = {"lung_noise_hu": 14.0, "soft_tissue_noise_hu": 20.0}
    found = realism.matched_settings(volume, 1.2, Measures(numbers))
    assert (found.pixel_mm, found.slice_mm, found.psf_fwhm_mm, found.noise_hu) == (*spacing_mm[1:], 1.2, 14.0)
    assert found.depth_mm == pytest.approx(slices * spacing_mm[2])
    assert 38 < found.size_voxels * found.pixel_mm < 50
    without = realism.matched_settings(volume, 1.2, Measures(numbers | {"lung_noise_hu": math.nan}))
    assert without == replace(found, noise_hu=20.0)


# The comparison


def measures_of(**numbers):
    curve = Curve(np.arange(4.0), np.arange(4.0) ** 2)
    return Measures(dict.fromkeys(TITLES, math.nan) | numbers, {"histogram": curve, "soft_tissue_spectrum": curve})


def example():
    real = {
        "a": measures_of(mode_hu=-900.0, soft_tissue_noise_hu=20.0, lumina=0.1),
        "b": measures_of(mode_hu=-870.0, soft_tissue_noise_hu=30.0),
    }
    simulated = {
        "a": measures_of(mode_hu=-880.0, soft_tissue_noise_hu=25.0, lumina=0.1),
        "b": measures_of(mode_hu=-860.0, soft_tissue_noise_hu=25.0, outside_air_noise_hu=9.0),
    }
    return compare(real, simulated, {"settings": {"a": {"pixel_mm": 0.7, "kernel": None}}, "cases": 4, "seed": 1})


def test_a_simulated_value_is_judged_by_the_range_of_the_real_ones():
    rows = {row.key: row for row in example().rows}
    assert list(rows) == list(TITLES)
    assert (rows["mode_hu"].low, rows["mode_hu"].high) == (-900.0, -870.0)
    assert rows["mode_hu"].within == {"a": True, "b": False}
    assert rows["lumina"].within == {"a": True}
    assert rows["outside_air_noise_hu"].within == {}


def test_a_number_the_simulation_is_told_is_not_judged():
    assert {row.key: row.within for row in example().rows}["soft_tissue_noise_hu"] == {}


def test_the_table_shows_real_and_simulated_side_by_side():
    text = markdown(example())
    assert "| Lung: most frequent HU | -900 | -880 | -870 | -860 | -900 to -870 | 1 of 2 |" in text
    assert "nan" not in text.lower()
    assert "Within: 2 of 3 values." in text


def test_the_record_is_json_without_nan(tmp_path):
    paths = write_comparison(example(), tmp_path)
    assert [path.name for path in paths] == ["realism.md", "realism.json"]
    found = json.loads(to_json(example()), parse_constant=lambda name: pytest.fail(name))
    assert found == json.loads(paths[1].read_text())
    assert found["real"]["a"]["numbers"]["mode_hu"] == -900
    assert found["real"]["a"]["numbers"]["lumina_mm"] is None
    assert found["real"]["a"]["curves"]["histogram"]["y"] == [0, 1, 4, 9]


def test_the_figure_is_curves_alone(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, path: (drawn.append(self), save(self, path))[1])
    draw_comparison(example(), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    (figure,) = drawn
    assert not any(axes.images for axes in figure.axes)
    lines = figure.axes[0].lines
    assert [(line.get_color(), line.get_linestyle()) for line in lines] == [
        ("C0", "-"),
        ("C0", "--"),
        ("C1", "-"),
        ("C1", "--"),
    ]


# The command


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        ([], 2, "required"),
        (["scan.nrrd", "--output", "{folder}", "--cases", "0"], 2, "at least 1"),
        (["scan.nrrd", "--output", "{folder}", "--seed", "-1"], 2, "0 or more"),
        (["a/scan.nrrd", "b/scan.nrrd", "--output", "{folder}"], 2, "same name"),
        (["missing.nrrd", "--output", "{folder}"], 2, "missing.nrrd"),
    ],
)
def test_wrong_use_gets_one_sentence(arguments, status, says, tmp_path, capsys):
    assert realism.main([a.format(folder=tmp_path) for a in arguments]) == status
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert says in error
    assert "Traceback" not in error


def test_files_that_exist_are_kept(tmp_path, capsys):
    (tmp_path / "realism.md").write_text("mine")
    assert realism.main(["scan.nrrd", "--output", str(tmp_path)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "realism.md").read_text() == "mine"


def test_the_command_writes_table_record_and_figure(tmp_path, capsys, monkeypatch, fake_cases):
    rng = np.random.default_rng(8)
    scan = realism.MeasuredScan(
        measure([whole(rng.normal(LUNG_HU, 20, (3, 48, 48)))], 20.0), CaseSettings(size_voxels=32, depth_mm=2.0)
    )
    monkeypatch.setattr(realism, "read_volume", lambda path: path)
    monkeypatch.setattr(realism, "measure_scan", lambda volume, progress: scan)
    out = tmp_path / "out"
    assert realism.main(["a.nrrd", "b.nii.gz", "--output", str(out), "--cases", "1", "--progress", "none"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["realism.json", "realism.md", "realism.png"]
    assert capsys.readouterr().out == (out / "realism.md").read_text()
    assert list(json.loads((out / "realism.json").read_text())["real"]) == ["a", "b"]
