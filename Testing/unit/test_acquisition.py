"""The blur and the noise that were put into simulated scans come back out of them.

The scans are drawn here, from ellipses on an 8x finer grid, independently of the project's own
simulation: object, Gaussian point spread, mean over each pixel's area, mean over the slice's
thickness, coloured noise, rounding to whole HU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest

from CTMicroSRLib.acquisition import estimate_acquisition
from CTMicroSRLib.acquisition.edge_windows import area_nodes
from CTMicroSRLib.errors import CancelledError, UsageError
from CTMicroSRLib.volume import Geometry, Volume

SUPERSAMPLING = 8
FWHM_PER_SIGMA = math.sqrt(8 * math.log(2))


@dataclass(frozen=True)
class Scanner:
    """How the phantom is scanned."""

    psf_fwhm_mm: float = 1.0
    noise_hu: float = 15.0
    pixel_mm: float = 0.7
    thickness_mm: float = 1.0
    size: int = 192
    slices: int = 6
    scene: str = "chest"
    noise_power: str = "ramp mtf2"
    seed: int = 0
    pixel_ratio: float = 1.0  # spacing of j over spacing of i


def ellipse(image, x_mm, y_mm, centre, axes, hu):
    """Draw a filled ellipse; only its bounding box is touched."""
    i = slice(*np.searchsorted(x_mm, (centre[0] - axes[0], centre[0] + axes[0])))
    j = slice(*np.searchsorted(y_mm, (centre[1] - axes[1], centre[1] + axes[1])))
    inside = ((x_mm[i] - centre[0]) / axes[0])[None, :] ** 2 + ((y_mm[j] - centre[1]) / axes[1])[:, None] ** 2 < 1
    view = image[j, i]
    view[inside] = hu[j, i][inside] if isinstance(hu, np.ndarray) else hu


def draw_slice(x_mm, y_mm, z_mm, scene, parenchyma, vessels):
    """HU of the phantom's plane at z; every surface leans, some of them steeply."""
    image = np.full((y_mm.size, x_mm.size), -1000, np.float32)
    half = x_mm[-1]
    if scene == "chest":
        body = (0.15 * z_mm, -0.25 * z_mm)
        outer = np.array([0.92 * half, 0.78 * half])
        ellipse(image, x_mm, y_mm, body, outer, 30)  # skin
        ellipse(image, x_mm, y_mm, body, outer - 1.8, -100)  # fat
        ellipse(image, x_mm, y_mm, body, outer - 7.0, 55)  # muscle
        lungs = [(-0.38 * half, 0.36 * half), (0.42 * half, 0.3 * half)]
    else:  # only lung and chest wall in view
        image[:] = 50
        lungs = [(-0.1 * half, 0.75 * half)]
    for centre_x, axis in lungs:
        grown = 0.3 * z_mm
        ellipse(image, x_mm, y_mm, (centre_x + 0.2 * z_mm, 2.0), (axis + grown, 1.3 * axis + grown), parenchyma)
    for x, y, lean_x, lean_y, radius in vessels:
        where = (x * half + lean_x * z_mm, y * half + lean_y * z_mm)
        ellipse(image, x_mm, y_mm, where, (radius, radius), 40)
    ellipse(image, x_mm, y_mm, (0, 0.55 * half), (0.14 * half, 0.12 * half), 700)  # spine
    ellipse(image, x_mm, y_mm, (0, 0.55 * half), (0.14 * half - 1.5, 0.12 * half - 1.5), 200)
    if scene == "chest":
        ellipse(image, x_mm, y_mm, (0.02 * half, -0.35 * half), (0.09 * half, 0.08 * half), -1000)  # trachea
    return image


def blur_and_average(count, pixel_mm, psf_fwhm_mm):
    """Rows that take a fine line to pixels: Gaussian point spread, then the mean over each pixel."""
    fine_mm = pixel_mm / SUPERSAMPLING
    position = (np.arange(count * SUPERSAMPLING) + 0.5) * fine_mm
    sigma_mm = psf_fwhm_mm / FWHM_PER_SIGMA
    rows = np.exp(-0.5 * ((position[:, None] - position[None, :]) / sigma_mm) ** 2)
    rows /= rows.sum(axis=1, keepdims=True)
    return rows.reshape(count, SUPERSAMPLING, -1).mean(axis=1).astype(np.float32)


def coloured_noise(generator, shape, pixel_mm, scanner):
    """Noise of a filtered back-projection: a ramp under the point spread's transfer function."""
    fj = np.fft.fftfreq(shape[0], pixel_mm * scanner.pixel_ratio)
    fi = np.fft.rfftfreq(shape[1], pixel_mm)
    frequency = np.hypot(fj[:, None], fi[None, :])
    sigma_mm = scanner.psf_fwhm_mm / FWHM_PER_SIGMA
    mtf = np.exp(-2 * (math.pi * sigma_mm * frequency) ** 2)
    amplitude = np.sqrt(frequency) * mtf if scanner.noise_power == "ramp mtf2" else frequency * mtf
    noise = np.fft.irfft2(np.fft.rfft2(generator.standard_normal(shape)) * amplitude, shape)
    return noise * (scanner.noise_hu / noise.std())


def scan(scanner):
    """Array (k, j, i) in whole HU of a phantom's scan."""
    generator = np.random.default_rng(scanner.seed)
    count, pixel_j = scanner.size, scanner.pixel_mm * scanner.pixel_ratio
    fine = np.arange(count * SUPERSAMPLING) - (count * SUPERSAMPLING - 1) / 2
    x_mm, y_mm = fine * scanner.pixel_mm / SUPERSAMPLING, fine * pixel_j / SUPERSAMPLING
    vessels = [
        (*generator.uniform(-0.7, 0.7, 2), *generator.uniform(-0.5, 0.5, 2), generator.uniform(0.4, 2.5))
        for _ in range(60)
    ]
    coarse = generator.standard_normal((count * 2, count * 2)).astype(np.float32)
    coarse = coarse + np.roll(coarse, 1, 0) + np.roll(coarse, 1, 1) + np.roll(coarse, (1, 1), (0, 1))
    parenchyma = np.kron(-870 + 30 * coarse, np.ones((4, 4), np.float32))
    to_rows = blur_and_average(count, pixel_j, scanner.psf_fwhm_mm)
    to_columns = blur_and_average(count, scanner.pixel_mm, scanner.psf_fwhm_mm).T
    planes = 2 + round(scanner.thickness_mm)
    result = np.empty((scanner.slices, count, count), np.int16)
    for k in range(scanner.slices):
        total = np.zeros((count, count))
        for plane in range(planes):
            z_mm = (k - scanner.slices / 2 + (plane + 0.5) / planes) * scanner.thickness_mm
            image = draw_slice(x_mm, y_mm, z_mm, scanner.scene, parenchyma, vessels)
            total += to_rows @ image @ to_columns
        noise = coloured_noise(generator, (count, count), scanner.pixel_mm, scanner)
        result[k] = np.clip(np.rint(total / planes + noise), -1024, 3071)
    return result


def volume_of(array_kji, scanner):
    """The array on the scanner's grid."""
    spacing_mm = (scanner.pixel_mm, scanner.pixel_mm * scanner.pixel_ratio, scanner.thickness_mm)
    return Volume(array_kji, Geometry(array_kji.shape[::-1], spacing_mm))


def assert_recovered(found, scanner):
    """Both were estimated from the scan, the width within 10 % and the noise within 15 %."""
    assert (found.psf_source, found.noise_source) == ("estimated", "estimated")
    assert found.psf_fwhm_mm == pytest.approx(scanner.psf_fwhm_mm, rel=0.10)
    assert found.noise_hu == pytest.approx(scanner.noise_hu, rel=0.15)


SCANNERS = [
    # psf mm, noise HU, pixel mm, slice mm
    (0.6, 15, 0.9, 1.0),
    (0.6, 60, 0.5, 0.5),
    (0.8, 5, 0.6, 5.0),
    (1.0, 60, 0.7, 5.0),
    (1.2, 30, 0.8, 3.0),
    (1.5, 40, 0.9, 5.0),
    (2.0, 15, 0.5, 1.0),
    (2.0, 60, 0.9, 5.0),
]


@pytest.mark.parametrize("scene", ["chest", "lung"])
@pytest.mark.parametrize(("psf_fwhm_mm", "noise_hu", "pixel_mm", "thickness_mm"), SCANNERS)
def test_the_blur_and_noise_of_a_simulated_scan_are_found(psf_fwhm_mm, noise_hu, pixel_mm, thickness_mm, scene):
    scanner = Scanner(psf_fwhm_mm, noise_hu, pixel_mm, thickness_mm, scene=scene, slices=5)
    assert_recovered(estimate_acquisition(volume_of(scan(scanner), scanner)), scanner)


@pytest.fixture(scope="module")
def chest():
    """A scanner and its scan, for tests that change the scan."""
    scanner = Scanner(psf_fwhm_mm=1.1, noise_hu=20, slices=5)
    return scanner, scan(scanner)


def test_noise_of_another_colour_is_found():
    scanner = Scanner(noise_power="ramp squared", psf_fwhm_mm=1.4, noise_hu=25, slices=5, scene="lung")
    assert_recovered(estimate_acquisition(volume_of(scan(scanner), scanner)), scanner)


def test_pixels_that_are_not_square_are_allowed_for():
    scanner = Scanner(pixel_mm=0.6, pixel_ratio=1.25, psf_fwhm_mm=1.3, slices=5)
    assert_recovered(estimate_acquisition(volume_of(scan(scanner), scanner)), scanner)


def test_a_single_slice_is_enough(chest):
    scanner, array = chest
    found = estimate_acquisition(volume_of(array[2:3], scanner))
    # Without a neighbour the lean of the surfaces can't be seen, so the width is less sure.
    assert found.psf_fwhm_mm == pytest.approx(scanner.psf_fwhm_mm, rel=0.15)
    assert found.noise_hu == pytest.approx(scanner.noise_hu, rel=0.15)


@pytest.mark.parametrize("padding", [-1024, -2048, -3024])
def test_padding_around_the_field_of_view_changes_nothing(chest, padding):
    scanner, array = chest
    padded = np.pad(array, ((0, 0), (30, 30), (30, 30)), constant_values=padding)
    assert_recovered(estimate_acquisition(volume_of(padded, scanner)), scanner)


def test_the_type_of_the_voxels_does_not_matter(chest):
    scanner, array = chest
    whole = estimate_acquisition(volume_of(array, scanner))
    assert estimate_acquisition(volume_of(array.astype(np.float32), scanner)) == whole


def test_the_same_scan_gives_the_same_answer_and_is_left_alone(chest):
    scanner, array = chest
    before = array.copy()
    first = estimate_acquisition(volume_of(array, scanner))
    assert estimate_acquisition(volume_of(array, scanner)) == first
    np.testing.assert_array_equal(array, before)


def test_blurring_a_scan_again_adds_up_in_squares(chest):
    scanner, array = chest
    added_mm = 1.2
    count = array.shape[1]
    position = (np.arange(count) - np.arange(count)[:, None]) * scanner.pixel_mm
    rows = np.exp(-0.5 * (position * FWHM_PER_SIGMA / added_mm) ** 2)
    rows /= rows.sum(axis=1, keepdims=True)
    blurred = (rows @ array.astype(np.float64) @ rows.T).astype(np.float32)
    found = estimate_acquisition(volume_of(blurred, scanner))
    assert found.psf_fwhm_mm == pytest.approx(math.hypot(scanner.psf_fwhm_mm, added_mm), rel=0.10)
    assert found.noise_hu < 0.7 * scanner.noise_hu


def test_a_scan_interpolated_to_finer_pixels_is_not_taken_for_a_sharper_one(chest):
    scanner, array = chest
    finer = np.repeat(np.repeat(array.astype(np.float32), 2, axis=1), 2, axis=2)
    # Linear interpolation midway between the pixels.
    finer = (finer + np.roll(finer, 1, axis=1)) / 2
    finer = (finer + np.roll(finer, 1, axis=2)) / 2
    found = estimate_acquisition(volume_of(finer, replace(scanner, pixel_mm=scanner.pixel_mm / 2)))
    assert scanner.psf_fwhm_mm < found.psf_fwhm_mm < 1.6 * scanner.psf_fwhm_mm
    assert found.noise_hu < 1.15 * scanner.noise_hu


def test_lung_alone_gives_its_noise_and_an_assumed_blur():
    scanner = Scanner(pixel_mm=0.75)
    generator = np.random.default_rng(5)
    noise = np.stack([coloured_noise(generator, (128, 128), scanner.pixel_mm, scanner) for _ in range(4)])
    found = estimate_acquisition(volume_of((noise - 860).astype(np.float32), scanner))
    assert (found.psf_source, found.edges, found.psf_fwhm_mm) == ("assumed", 0, 1.0)
    assert found.noise_region == "lung"
    assert found.noise_hu == pytest.approx(scanner.noise_hu, rel=0.15)
    assert len(found.notes) == 2


def test_noise_in_clipped_air_is_measured_above_the_clipping():
    scanner = Scanner(noise_hu=30, pixel_mm=0.9)
    generator = np.random.default_rng(5)
    noise = np.stack([coloured_noise(generator, (128, 128), scanner.pixel_mm, scanner) for _ in range(4)])
    found = estimate_acquisition(volume_of(np.maximum(noise - 1000, -1024).astype(np.float32), scanner))
    assert found.noise_region == "air"
    assert found.noise_hu == pytest.approx(scanner.noise_hu, rel=0.15)


def test_a_constant_volume_leaves_everything_assumed_and_says_so():
    found = estimate_acquisition(volume_of(np.full((3, 64, 64), -1024, np.int16), Scanner(pixel_mm=1.5)))
    assert (found.psf_source, found.noise_source) == ("assumed", "assumed")
    assert found.psf_fwhm_mm == pytest.approx(1.65)
    assert len(found.notes) == 2


def test_a_volume_smaller_than_a_window_is_answered():
    found = estimate_acquisition(volume_of(np.zeros((1, 4, 4), np.int16), Scanner()))
    assert (found.psf_source, found.noise_source) == ("assumed", "assumed")


def test_given_values_are_kept_and_marked(chest):
    scanner, array = chest
    volume = volume_of(array, scanner)
    both = estimate_acquisition(volume, psf_fwhm_mm=0.9, noise_hu=12.0)
    assert (both.psf_fwhm_mm, both.noise_hu, both.psf_source, both.noise_source) == (0.9, 12, "given", "given")
    blur_only = estimate_acquisition(volume, psf_fwhm_mm=scanner.psf_fwhm_mm)
    assert (blur_only.psf_source, blur_only.noise_source) == ("given", "estimated")
    assert blur_only.noise_hu == pytest.approx(scanner.noise_hu, rel=0.15)
    noise_only = estimate_acquisition(volume, noise_hu=scanner.noise_hu)
    assert (noise_only.psf_source, noise_only.noise_source) == ("estimated", "given")
    assert noise_only.psf_fwhm_mm == pytest.approx(scanner.psf_fwhm_mm, rel=0.10)


@pytest.mark.parametrize("given", [{"psf_fwhm_mm": -1.0}, {"noise_hu": math.nan}, {"psf_fwhm_mm": math.inf}])
def test_given_values_that_can_not_be_are_refused(chest, given):
    scanner, array = chest
    with pytest.raises(UsageError, match="not a finite number"):
        estimate_acquisition(volume_of(array, scanner), **given)


class Recorder:
    """Progress that remembers, and cancels in a named stage."""

    def __init__(self, cancel_in=None):
        self.seen, self.cancel_in = [], cancel_in

    def update(self, stage, done, total):
        self.seen.append((stage, done, total))

    def cancelled(self):
        return bool(self.seen) and self.seen[-1][0] == self.cancel_in


def test_both_stages_are_reported_to_their_end(chest):
    scanner, array = chest
    recorder = Recorder()
    estimate_acquisition(volume_of(array, scanner), progress=recorder)
    ends = {stage for stage, done, total in recorder.seen if done == total}
    assert ends == {"noise", "edges"}


@pytest.mark.parametrize("stage", ["noise", "edges"])
def test_it_stops_when_asked(chest, stage):
    scanner, array = chest
    with pytest.raises(CancelledError):
        estimate_acquisition(volume_of(array, scanner), progress=Recorder(stage))


@pytest.mark.parametrize(("cos", "lean_mm"), [(1.0, 0.0), (0.6, 0.0), (0.8, 0.7)])
def test_three_points_have_the_moments_of_the_pixels_projected_area(cos, lean_mm):
    spacing_mm = (0.7, 0.9, 1.0)
    sin = math.sqrt(1 - cos**2)
    node, share = area_nodes(*(np.array([[v]], np.float32) for v in (cos, sin)), spacing_mm, np.float32([[lean_mm]]))
    generator = np.random.default_rng(0)
    i, j, k = generator.uniform(-0.5, 0.5, (3, 400_000))
    projected = cos * spacing_mm[0] * i + sin * spacing_mm[1] * j + lean_mm * k
    for power in (2, 4):
        assert (2 * share * node**power).item() == pytest.approx((projected**power).mean(), rel=0.01)
