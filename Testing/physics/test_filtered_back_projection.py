"""The fast scanner against independent physics: rays through the object, photon noise, filtered back-projection.

The ASTRA toolbox projects with the area that each ray shares with each voxel and reconstructs with a Ram-Lak filter;
the kernel's transfer is applied to the projections. A modelled detector has cells as wide as the clinical pixel, two
samples per cell (flying focal spot), and the image is read at the pixels' centres.
"""

from __future__ import annotations

import numpy as np
import pytest

from CTMicroSRLib.simulation.kernels import KERNELS
from CTMicroSRLib.simulation.noise import WATER_PER_MM, noise_power, patient_noise_hu
from CTMicroSRLib.simulation.scanner import ScannerSettings, clean_slice

astra = pytest.importorskip("astra")

PIXEL_MM = 0.64
SCALE = 8
VOXEL_MM = PIXEL_MM / SCALE
SAMPLES_PER_CELL = 2

LUNG_HU, TISSUE_HU = -860.0, 40.0


class Reconstruction:
    """Parallel beam over half a turn; ``size`` voxels and rays, ``scale`` of them per pixel and detector cell."""

    def __init__(self, size, views, scale):
        self.size, self.scale, self.step = size, scale, scale // SAMPLES_PER_CELL
        self.voxel_mm = PIXEL_MM / scale
        self.angles = np.arange(views) * np.pi / views
        half_mm = size * self.voxel_mm / 2
        self.rays = astra.create_proj_geom("parallel", self.voxel_mm, size, self.angles)
        self.object = astra.create_vol_geom(size, size, -half_mm, half_mm, -half_mm, half_mm)
        # Half a voxel to the left and up, so that the centres of pixels are voxels (scale / 2, scale / 2), ...
        left, up = -half_mm - self.voxel_mm / 2, half_mm + self.voxel_mm / 2
        self.image = astra.create_vol_geom(size, size, left, left + 2 * half_mm, up - 2 * half_mm, up)

    def project(self, hu):
        """Line integrals over the detector's samples, shape (views, samples): the mean over a cell's rays."""
        projector = astra.create_projector("strip", self.rays, self.object)
        number, fine = astra.create_sino(WATER_PER_MM * (1 + hu / 1000.0), projector)
        astra.data2d.delete(number)
        padded = np.pad(fine, ((0, 0), ((self.scale - self.step) // 2,) * 2))
        return np.mean([padded[:, n : n + self.size : self.step] for n in range(self.scale)], axis=0)

    def reconstruct(self, samples, kernel):
        """Image in HU + 1000 at the fine voxels; the samples become rays by Fourier interpolation."""
        views, count = samples.shape
        spectrum = np.fft.fft(np.pad(samples, ((0, 0), (count, count))), axis=1)
        frequency = np.fft.fftfreq(3 * count, self.step * self.voxel_mm)
        # A sample lies in the middle of its rays.
        shift = np.exp(-1j * np.pi * frequency * (self.step - 1) * self.voxel_mm)
        # Back-projection in strips takes the mean over the ray and over the voxel; both are undone beforehand.
        strips = np.sinc(frequency * self.voxel_mm) ** 2
        fine = np.zeros((views, 3 * self.size), complex)
        at = np.rint(frequency * 3 * self.size * self.voxel_mm).astype(int)
        fine[:, at] = self.step * spectrum * kernel.mtf(frequency) * shift / strips
        sinogram = np.fft.ifft(fine, axis=1).real[:, self.size : 2 * self.size].astype(np.float32)
        projector = astra.create_projector("strip", self.rays, self.image)
        data, image = astra.data2d.create("-sino", self.rays, sinogram), astra.data2d.create("-vol", self.image)
        configuration = astra.astra_dict("FBP")
        configuration.update(ProjectorId=projector, ProjectionDataId=data, ReconstructionDataId=image)
        algorithm = astra.algorithm.create(configuration)
        astra.algorithm.run(algorithm)
        found = astra.data2d.get(image) * (1000.0 / WATER_PER_MM)
        astra.algorithm.delete(algorithm)
        astra.data2d.delete([data, image])
        astra.projector.delete(projector)
        return found

    def at_pixels(self, image):
        """The image at the pixels' centres."""
        return image[self.scale // 2 :: self.scale, self.scale // 2 :: self.scale]


@pytest.fixture(scope="module")
def thorax():
    """A slice of 32 mm: lung in air, a slanted chest wall, vessels and airways of 0.4 to 4 mm."""
    size, fine = 400, 3
    at = (np.arange(size * fine) + 0.5) * VOXEL_MM / fine - size * VOXEL_MM / 2
    y, x = at[:, None], at[None, :]
    hu = np.where(np.hypot(x, y) < 15.0, LUNG_HU, -1000.0)
    hu[(x - 8.0 > 0.1 * y) & (np.hypot(x, y) < 15.0)] = TISSUE_HU
    for cx, cy, radius in ((-8, 0, 2.0), (-4, 8, 1.0), (-6, -7, 0.5), (-1, -9, 0.35), (-11, 6, 0.2), (0, 3, 0.75)):
        hu[np.hypot(x - cx, y - cy) < radius] = TISSUE_HU
    for cx, cy, radius, wall in ((-2, -3, 1.2, 0.5), (-9, -5, 0.5, 0.3)):
        hu[np.hypot(x - cx, y - cy) < radius + wall] = TISSUE_HU
        hu[np.hypot(x - cx, y - cy) < radius] = -1000.0
    return hu.reshape(size, fine, size, fine).mean(axis=(1, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def rays_through_thorax(thorax):
    reconstruction = Reconstruction(len(thorax), views=400, scale=SCALE)
    return reconstruction, reconstruction.project(thorax)


@pytest.fixture(scope="module", params=["soft", "bone"])
def both_images(request, thorax, rays_through_thorax):
    """Kernel, the image from rays and the fast scanner's, in HU."""
    kernel = KERNELS[request.param]
    reconstruction, samples = rays_through_thorax
    real = reconstruction.at_pixels(reconstruction.reconstruct(samples, kernel)) - 1000.0
    return kernel, real, clean_slice(thorax, ScannerSettings(kernel), VOXEL_MM)


def pixel_centres_mm(count):
    return (np.arange(count) + 0.5 - count / 2) * PIXEL_MM


def test_the_image_is_that_of_filtered_back_projection(both_images):
    _, real, fast = both_images
    at = pixel_centres_mm(len(fast))
    inside = np.hypot(at[:, None], at[None, :]) < 13.5
    difference = (real - fast)[inside]
    assert np.sqrt(np.mean(difference**2)) < 2.0  # of 1040 HU of contrast
    assert np.abs(difference).max() < 10.0
    assert abs(difference.mean()) < 0.5


def edge_mtf(image, frequency):
    """Transfer at frequencies (cycles/mm) from the chest wall, whose edge is 0.1 rad off the grid."""
    at = pixel_centres_mm(len(image))
    y, x = np.meshgrid(at, at, indexing="ij")
    distance = (x - 8.0 - 0.1 * y) / np.hypot(1.0, 0.1)
    chosen = (np.abs(distance) < 4.0) & (np.abs(y) < 7.5)
    order = np.argsort(distance[chosen])
    step = 0.04
    edge = np.interp(np.arange(-4.0, 4.0, step), distance[chosen][order], image[chosen][order])
    spread = np.diff(edge)
    phase = np.exp(-2j * np.pi * step * np.outer(frequency, np.arange(len(spread))))
    return np.abs(phase @ spread) / abs(spread.sum()) / np.sinc(step * frequency)


def test_an_edge_shows_the_transfer_of_filtered_back_projection(both_images):
    kernel, real, fast = both_images
    frequency = np.linspace(0.1, kernel.mtf10_per_mm, 12)
    from_rays, from_fast = edge_mtf(real, frequency), edge_mtf(fast, frequency)
    assert np.abs(from_rays - from_fast).max() < 0.02
    assert np.abs(from_fast - kernel.mtf(frequency) * np.sinc(PIXEL_MM * frequency)).max() < 0.02


NOISE_KERNEL = KERNELS["medium"]
CROP = 32


def noise_spectrum(patient_mm):
    """Power in HU^2 of photon noise at a patient's centre, (CROP, CROP), and its standard deviation.

    The patient is larger than the reconstruction, so its line integrals are computed, and taken away again.
    """
    size, views, photons, realisations = 152, 180, 2e5, 40
    reconstruction, rng = Reconstruction(size, views, scale=4), np.random.default_rng(0)
    lateral, anterior = (extent / 2 for extent in patient_mm)
    step_mm = reconstruction.step * reconstruction.voxel_mm
    along = (np.arange(size // reconstruction.step) + 0.5) * step_mm - size * reconstruction.voxel_mm / 2
    width = (lateral * np.cos(reconstruction.angles)) ** 2 + (anterior * np.sin(reconstruction.angles)) ** 2
    chord_mm = 2 * lateral * anterior * np.sqrt(width[:, None] - along[None, :] ** 2) / width[:, None]
    expected = photons * np.exp(-WATER_PER_MM * (chord_mm - 320.0))
    window = np.hanning(CROP)[:, None] * np.hanning(CROP)[None, :]
    power, variance = [], []
    for _ in range(realisations):
        noise = -np.log(rng.poisson(expected) / expected)
        image = reconstruction.at_pixels(reconstruction.reconstruct(noise, NOISE_KERNEL))[3 : 3 + CROP, 3 : 3 + CROP]
        variance.append(np.var(image))
        power.append(np.abs(np.fft.fft2((image - image.mean()) * window)) ** 2 / np.sum(window**2))
    return np.mean(power, axis=0), np.sqrt(np.mean(variance))


@pytest.fixture(scope="module")
def round_patient():
    return noise_spectrum((320.0, 320.0))


@pytest.fixture(scope="module")
def wide_patient():
    return noise_spectrum((400.0, 250.0))


FREQUENCY = np.fft.fftfreq(CROP, PIXEL_MM)
RADIAL = np.hypot(FREQUENCY[:, None], FREQUENCY[None, :])


def modelled(patient_mm):
    """The fast scanner's relative power at all frequencies of the crop."""
    half = noise_power(ScannerSettings(NOISE_KERNEL, patient_mm=patient_mm), PIXEL_MM, (CROP, CROP))
    mirrored = np.roll(half[::-1], 1, axis=0)[:, 1:-1][:, ::-1]
    return np.concatenate([half, mirrored], axis=1)


def test_noise_has_the_spectrum_of_filtered_back_projection(round_patient):
    """In bands of 0.1 cycles/mm up to the corner; the noise through the pixel's mean would be another."""
    power, deviation = round_patient
    ours, real = modelled((320.0, 320.0)), power / deviation**2
    through_mean = ours * (np.sinc(PIXEL_MM * FREQUENCY)[:, None] * np.sinc(PIXEL_MM * FREQUENCY)[None, :]) ** 2
    through_mean /= through_mean.mean()
    for low in np.arange(0.1, 1.0, 0.1):
        band = (low <= RADIAL) & (low + 0.1 > RADIAL)
        assert real[band].mean() == pytest.approx(ours[band].mean(), rel=0.1)
    sharp = (RADIAL > 0.7) & (RADIAL < 0.9)
    assert real[sharp].mean() > 1.4 * through_mean[sharp].mean()


def test_a_wide_patient_has_the_noise_and_the_lateral_streaks_of_filtered_back_projection(round_patient, wide_patient):
    patient_mm = (400.0, 250.0)
    settings = ScannerSettings(NOISE_KERNEL, noise_hu=1.0, patient_mm=patient_mm)
    assert wide_patient[1] / round_patient[1] == pytest.approx(patient_noise_hu(settings), rel=0.03)
    angle = np.degrees(np.arctan2(np.abs(FREQUENCY)[:, None], np.abs(FREQUENCY)[None, :]))
    ours, real = modelled(patient_mm), wide_patient[0] / round_patient[1] ** 2
    band = (RADIAL > 0.2) & (RADIAL < 0.7)
    vertical, horizontal = band & (angle > 60.0), band & (angle < 30.0)
    for wedge in (vertical, horizontal):
        assert real[wedge].mean() == pytest.approx(ours[wedge].mean(), rel=0.1)
    ratio = ours[vertical].mean() / ours[horizontal].mean()
    assert real[vertical].mean() / real[horizontal].mean() == pytest.approx(ratio, rel=0.12)
    assert ratio > 8.0
