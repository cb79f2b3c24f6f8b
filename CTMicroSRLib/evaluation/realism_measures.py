"""Measures of the lungs in a chest CT that can be taken alike on a real scan and on simulated blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.acquisition.edge_windows import as_hu, binomial_smooth, evenly_spaced_slices
from CTMicroSRLib.errors import RefusedInputError
from CTMicroSRLib.evaluation.realism_edges import Edges, airway_edges, vessel_edges
from CTMicroSRLib.evaluation.realism_noise import (
    Spectrum,
    cut_patches,
    measure_spectrum,
    outside_air_patches,
    patch_pixels,
    soft_tissue_patches,
    window_share,
)
from CTMicroSRLib.evaluation.realism_pieces import Pieces, find_holes, find_pieces, refine_slice
from CTMicroSRLib.progress import Progress, SilentProgress, check_cancelled
from CTMicroSRLib.volume import Volume

Float32 = NDArray[np.float32]
Float = NDArray[np.float64]
Bools = NDArray[np.bool_]

BLOOD_HU = 40.0
CLASSES_MM = (0.0, 1.0, 2.0, 3.0, 5.0, math.inf)
CLASS_NAMES = ("<1", "1-2", "2-3", "3-5", ">5")
PERCENTILES = (5, 25, 50, 75, 95)
HISTOGRAM_HU = np.arange(-1024.0, 209.0, 8.0)
DIAMETERS_MM = np.arange(0.5, 10.01, 0.25)


@dataclass(frozen=True)
class Part:
    """A piece of a CT: ``volume`` in HU and ``lung_kji``, its voxels inside the lungs, vessels included."""

    volume: Volume
    lung_kji: Bools


@dataclass(frozen=True)
class MeasureSettings:
    """How the measures are taken.

    At most ``slices`` of each part are read. Lung within ``margin_mm`` of the lungs' border in-plane, or outside
    them in a neighbouring slice, is left out. A window of ``window_mm`` is plain parenchyma where no pixel, smoothed,
    is further than ``plain_hu`` from the window's median; so are the squares of ``parenchyma_pixels`` that the
    parenchyma's spectrum is taken from. A lumen is a hole in what is ``wall_hu`` above the
    parenchyma, itself ``lumen_hu`` below it.
    """

    slices: int = 16
    margin_mm: float = 3.0
    window_mm: float = 5.0
    plain_hu: float = 120.0
    parenchyma_pixels: int = 12
    wall_hu: float = 100.0
    lumen_hu: float = 30.0
    round_ratio: float = 1.5
    vessel_edges_mm: tuple[float, float] = (2.5, 10.0)
    lumina_mm: tuple[float, float] = (1.0, 12.0)


@dataclass(frozen=True)
class Curve:
    """``y`` against ``x``, both of shape (n,)."""

    x: Float
    y: Float


@dataclass(frozen=True)
class Measures:
    """``numbers`` by key (:data:`realism_table.TITLES`; NaN where there is nothing to measure), ``curves`` by name."""

    numbers: dict[str, float]
    curves: dict[str, Curve] = field(default_factory=dict)


@dataclass
class _Found:
    """What has been read of all slices so far; lengths in mm, areas in mm^2."""

    lung_hu: list[Float32] = field(default_factory=list)
    lung_mm2: float = 0.0
    windows: int = 0
    window_variance: list[Float32] = field(default_factory=list)
    window_mean: list[Float32] = field(default_factory=list)
    soft_tissue: list[Float32] = field(default_factory=list)
    outside_air: list[Float32] = field(default_factory=list)
    parenchyma: list[Float32] = field(default_factory=list)
    vessels: list[Pieces] = field(default_factory=list)
    faint_vessels: list[Pieces] = field(default_factory=list)
    lumina: list[Pieces] = field(default_factory=list)
    vessel_edges: list[Edges] = field(default_factory=list)
    airway_edges: list[Edges] = field(default_factory=list)


def measure(
    parts: Sequence[Part],
    noise_hu: float,
    known_noise: Float32 | None = None,
    settings: MeasureSettings | None = None,
    progress: Progress | None = None,
) -> Measures:
    """Measure the lungs of a scan, or of many simulated blocks together.

    Args:
        parts: the scan, or the blocks, all of one pixel size.
        noise_hu: the noise in soft tissue, which tells uniform patches from others.
        known_noise: noise alone, HU, shape (k, j, i); it stands for patches of soft tissue where given.
        settings: see :class:`MeasureSettings`.
        progress: told of every slice.

    Returns:
        Numbers and curves; see :data:`CTMicroSRLib.evaluation.realism_table.TITLES`.

    Raises:
        RefusedInputError: the parts hold no lung.
        CancelledError: ``progress`` said so.
    """
    settings = settings or MeasureSettings()
    progress = progress or SilentProgress()
    slices = [(part, k) for part in parts for k in _lung_slices(part, settings)]
    if not slices:
        raise RefusedInputError("There is no lung to measure; choose a chest CT with lung in view.")
    level_hu = _parenchyma_level(slices)
    found = _Found()
    for done, (part, k) in enumerate(slices):
        check_cancelled(progress)
        progress.update("measuring", done, len(slices))
        _read_slice(part, k, level_hu, noise_hu, settings, found)
    progress.update("measuring", len(slices), len(slices))
    if not found.lung_hu:
        raise RefusedInputError("The lungs in view are too narrow to measure; choose a scan or block with more lung.")
    pixel_mm = _pixel_mm(parts[0])
    if known_noise is not None:
        size = patch_pixels(pixel_mm)
        found.soft_tissue = [cut_patches(noise, size, size // 2).astype(np.float32) for noise in known_noise]
    return _summary(found, level_hu, noise_hu, pixel_mm, settings)


def _pixel_mm(part: Part) -> float:
    return math.sqrt(part.volume.geometry.spacing_mm[0] * part.volume.geometry.spacing_mm[1])


def _lung_slices(part: Part, settings: MeasureSettings) -> list[int]:
    """Evenly spaced slices that show at least a fifth of the lung that the fullest slice shows."""
    area = part.lung_kji.sum(axis=(1, 2))
    shown = np.flatnonzero(area > max(0.2 * area.max(), 1))
    if len(shown) <= settings.slices:
        return [int(k) for k in shown]
    return [int(shown[n]) for n in evenly_spaced_slices(len(shown), settings.slices)]


def _core(part: Part, k: int, margin_mm: float) -> Bools:
    """Lung of a slice that is lung in the neighbouring slices too, and ``margin_mm`` from where it is not."""
    from scipy.ndimage import distance_transform_edt

    lung = part.lung_kji[max(0, k - 1) : k + 2].all(axis=0)
    # An image's border is not the lung's.
    padded = np.pad(lung, 1, mode="edge")
    if padded.all():
        return np.asarray(lung)
    sampling = part.volume.geometry.spacing_mm[1::-1]
    distance = np.asarray(distance_transform_edt(padded, sampling=sampling))
    return np.asarray(distance[1:-1, 1:-1] > margin_mm)


def _parenchyma_level(slices: Sequence[tuple[Part, int]]) -> float:
    """The HU that is most frequent in the lungs."""
    counts = np.zeros(len(HISTOGRAM_HU) - 1)
    for part, k in slices:
        counts += np.histogram(as_hu(part.volume.array_kji[k])[part.lung_kji[k]], HISTOGRAM_HU)[0]
    return _mode(counts[HISTOGRAM_HU[:-1] < -500.0])


def _mode(counts: Float) -> float:
    """The mode in HU of a histogram on :data:`HISTOGRAM_HU`: the middle of its bell above 60 % of the top."""
    smooth = np.convolve(counts, np.array([1, 4, 6, 4, 1]) / 16, mode="same")
    high = smooth > 0.6 * smooth.max()
    middle = HISTOGRAM_HU[: len(counts)] + 4.0
    return float((middle * smooth)[high].sum() / smooth[high].sum())


def _read_slice(part: Part, k: int, level_hu: float, noise_hu: float, settings: MeasureSettings, found: _Found) -> None:
    image, core = as_hu(part.volume.array_kji[k]), _core(part, k, settings.margin_mm)
    pixel_mm = _pixel_mm(part)
    size = patch_pixels(pixel_mm)
    found.soft_tissue.append(soft_tissue_patches(image, part.lung_kji[k], size, noise_hu))
    found.outside_air.append(outside_air_patches(image, part.lung_kji[k], size))
    if not core.any():
        return
    found.lung_hu.append(image[core])
    found.lung_mm2 += float(np.count_nonzero(core)) * pixel_mm**2
    window = _window_pixels(pixel_mm, settings)
    plain, whole = _plain_windows(image, core, window, max(1, window // 2), settings.plain_hu)
    found.windows += whole
    found.window_variance.append(plain.var(axis=(1, 2), ddof=1))
    found.window_mean.append(plain.mean(axis=(1, 2)))
    patch = settings.parenchyma_pixels
    found.parenchyma.append(_plain_windows(image, core, patch, patch // 2, settings.plain_hu)[0])
    _read_pieces(image, core, pixel_mm, level_hu, settings, found)


def _window_pixels(pixel_mm: float, settings: MeasureSettings) -> int:
    return max(3, round(settings.window_mm / pixel_mm))


def _plain_windows(image: Float32, core: Bools, size: int, stride: int, plain_hu: float) -> tuple[Float32, int]:
    """Windows of lung without vessels or airways, shape (n, size, size), and how many there are with them."""
    whole = cut_patches(core, size, stride).all(axis=(1, 2))
    smooth = cut_patches(binomial_smooth(image), size, stride)[whole].astype(np.float32)
    smooth = smooth.reshape(len(smooth), size * size)
    plain = (np.abs(smooth - np.median(smooth, axis=1, keepdims=True)) < plain_hu).all(axis=1)
    return cut_patches(image, size, stride)[whole][plain].astype(np.float32), len(smooth)


def _read_pieces(
    image: Float32, core: Bools, pixel_mm: float, level_hu: float, settings: MeasureSettings, found: _Found
) -> None:
    """Vessels and lumina of a slice; only the box around the lungs is interpolated."""
    rows, columns = (np.flatnonzero(core.any(axis=axis)) for axis in (1, 0))
    # Room for the rays of pieces next to the lungs' border.
    room = math.ceil(6.0 / pixel_mm)
    box = tuple(slice(max(0, line[0] - room), line[-1] + 1 + room) for line in (rows, columns))
    crop = image[box]
    fine, factor = refine_slice(crop, pixel_mm)
    inside = core[box].repeat(factor, axis=0).repeat(factor, axis=1)
    fine_mm = pixel_mm / factor
    vessels = find_pieces((fine > level_hu + 0.5 * (BLOOD_HU - level_hu)) & inside, fine_mm)
    found.vessels.append(vessels)
    found.faint_vessels.append(find_pieces((fine > level_hu + 0.25 * (BLOOD_HU - level_hu)) & inside, fine_mm))
    low, high = settings.vessel_edges_mm
    shaped = (vessels.axis_ratio < settings.round_ratio) & (vessels.diameter_mm > low) & (vessels.diameter_mm < high)
    found.vessel_edges.append(vessel_edges(crop, pixel_mm, vessels.select(shaped).on_coarser(factor)))
    lumina = _lumina(fine, inside, fine_mm, level_hu, settings)
    found.lumina.append(lumina)
    found.airway_edges.append(airway_edges(crop, pixel_mm, lumina.on_coarser(factor)))


def _lumina(fine: Float32, inside: Bools, fine_mm: float, level_hu: float, settings: MeasureSettings) -> Pieces:
    holes = find_holes(fine > level_hu + settings.wall_hu, fine_mm)
    j, i = np.rint(holes.centre_ji).astype(int).T
    low, high = settings.lumina_mm
    dark = inside[j, i] & (fine[j, i] < level_hu - settings.lumen_hu)
    sized = (holes.diameter_mm > low) & (holes.diameter_mm < high)
    return holes.select(dark & sized & (holes.axis_ratio < settings.round_ratio))


def _summary(found: _Found, level_hu: float, noise_hu: float, pixel_mm: float, settings: MeasureSettings) -> Measures:
    spectra = {
        name: measure_spectrum(np.concatenate(patches), pixel_mm)
        for name, patches in (
            ("soft_tissue", found.soft_tissue),
            ("outside_air", found.outside_air),
            ("parenchyma", found.parenchyma),
        )
    }
    numbers = {"mode_hu": level_hu, "soft_tissue_noise_hu": noise_hu}
    edge = settings.parenchyma_pixels
    alike = measure_spectrum(np.concatenate(found.soft_tissue)[:, :edge, :edge], pixel_mm)
    numbers["lung_noise_hu"] = lung_noise(alike, spectra["parenchyma"], noise_hu)
    curves = _histogram(found, numbers)
    curves |= _local_deviation(found, numbers, pixel_mm, settings)
    for name, spectrum in spectra.items():
        numbers |= {
            f"{name}_peak": math.nan if spectrum is None else spectrum.peak,
            f"{name}_centroid": math.nan if spectrum is None else spectrum.centroid,
        }
        if spectrum is not None:
            curves[f"{name}_spectrum"] = Curve(spectrum.frequency, spectrum.power)
    air = spectra["outside_air"]
    numbers["outside_air_noise_hu"] = math.nan if air is None else air.noise_hu
    curves |= _counts(found, numbers)
    curves |= _edges(found, numbers)
    return Measures(numbers, curves)


def lung_noise(soft_tissue: Spectrum | None, parenchyma: Spectrum | None, noise_hu: float) -> float:
    """The noise inside the lungs: soft tissue's, scaled so that the spectra agree where structure is blurred away.

    The lungs' own texture passes the scanner's transfer function and noise passes it after a ramp, so that near the
    Nyquist frequency almost only noise is left. Where the texture still shows the noise is overestimated.

    Args:
        soft_tissue: spectrum of noise alone.
        parenchyma: spectrum of plain parenchyma, from patches of the same size.
        noise_hu: standard deviation that belongs to ``soft_tissue``.

    Returns:
        Standard deviation in HU; NaN where a spectrum is missing.
    """
    if soft_tissue is None or parenchyma is None or soft_tissue.top <= 0:
        return math.nan
    return noise_hu * math.sqrt(parenchyma.top / soft_tissue.top)


def _quartiles(values: Float | Float32, numbers: dict[str, float], key: str) -> None:
    found = np.percentile(values, (25, 50, 75)) if len(values) else np.full(3, math.nan)
    for name, value in zip((25, 50, 75), found, strict=True):
        numbers[f"{key}_{name}"] = float(value)


def _histogram(found: _Found, numbers: dict[str, float]) -> dict[str, Curve]:
    values = np.concatenate(found.lung_hu)
    percentiles = np.percentile(values, PERCENTILES)
    for name, value in zip(PERCENTILES, percentiles, strict=True):
        numbers[f"percentile_{name}_hu"] = float(value)
    total = float(percentiles[3] - percentiles[1]) / 1.349
    numbers["spread_hu"] = _less_noise(total**2, numbers["lung_noise_hu"] ** 2)
    counts = np.histogram(values, HISTOGRAM_HU)[0]
    step = float(HISTOGRAM_HU[1] - HISTOGRAM_HU[0])
    return {"histogram": Curve(HISTOGRAM_HU[:-1] + step / 2, counts / len(values) / step)}


def _less_noise(variance: float, noise_variance: float) -> float:
    """Standard deviation without the noise; NaN where the noise is not known."""
    return math.sqrt(max(0.0, variance - noise_variance)) if math.isfinite(noise_variance) else math.nan


def _local_deviation(
    found: _Found, numbers: dict[str, float], pixel_mm: float, settings: MeasureSettings
) -> dict[str, Curve]:
    variance, mean = np.concatenate(found.window_variance), np.concatenate(found.window_mean)
    patches = np.concatenate(found.soft_tissue)
    share = window_share(patches, _window_pixels(pixel_mm, settings)) if len(patches) else 1.0
    noise = share * numbers["lung_noise_hu"] ** 2
    deviation = np.sqrt(variance)
    _quartiles(deviation, numbers, "local_std_hu")
    for quartile in (25, 50, 75):
        numbers[f"texture_hu_{quartile}"] = _less_noise(numbers[f"local_std_hu_{quartile}"] ** 2, noise)
    numbers["plain_share"] = len(variance) / found.windows if found.windows else math.nan
    means = np.percentile(mean, (25, 75)) if len(mean) else np.full(2, math.nan)
    numbers["regional_spread_hu"] = float(means[1] - means[0]) / 1.349
    edges = np.arange(0.0, 101.0, 2.0)
    counts = np.histogram(deviation, edges)[0] / max(1, len(deviation)) / 2.0
    return {"local_std": Curve(edges[:-1] + 1.0, counts)}


def _counts(found: _Found, numbers: dict[str, float]) -> dict[str, Curve]:
    lung_cm2 = found.lung_mm2 / 100.0
    curves = {}
    for key, pieces in (("vessels", found.vessels), ("faint_vessels", found.faint_vessels)):
        diameter = np.concatenate([p.diameter_mm for p in pieces])
        counts = np.histogram(diameter, CLASSES_MM)[0] / lung_cm2
        numbers |= {f"{key}_{name}": float(n) for name, n in zip(CLASS_NAMES, counts, strict=True)}
        numbers[f"{key}_area"] = float(sum(p.area_mm2.sum() for p in pieces)) / found.lung_mm2
        wider = np.array([np.count_nonzero(diameter >= d) for d in DIAMETERS_MM]) / lung_cm2
        curves[key] = Curve(DIAMETERS_MM, wider)
    diameter = np.concatenate([p.diameter_mm for p in found.lumina])
    numbers["lumina"] = len(diameter) / lung_cm2
    numbers["lumina_mm"] = float(np.median(diameter)) if len(diameter) else math.nan
    return curves


def _edges(found: _Found, numbers: dict[str, float]) -> dict[str, Curve]:
    curves = {}
    edges = np.arange(0.0, 5.01, 0.1)
    for key, parts in (("vessel", found.vessel_edges), ("airway", found.airway_edges)):
        joined = Edges.join(parts)
        _quartiles(joined.rise_mm, numbers, f"{key}_rise_mm")
        numbers[f"{key}_peak_hu"] = float(np.median(joined.peak_hu)) if len(joined.peak_hu) else math.nan
        counts = np.histogram(joined.rise_mm, edges)[0] / max(1, len(joined.rise_mm)) / 0.1
        curves[f"{key}_rise"] = Curve(edges[:-1] + 0.05, counts)
    return curves
