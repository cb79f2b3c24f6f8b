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
    inside = ((x_mm[i] - centre[0]) / axes[0])[None, :] ** 2 + ((y_mm[j] - centre[1]) / axes[1])[
        :, None
    ] ** 2 < 1
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
        ellipse(
            image, x_mm, y_mm, (centre_x + 0.2 * z_mm, 2.0), (axis + grown, 1.3 * axis + grown), parenchyma
        )
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
