"""Simulated cases: a specimen seen by both scanners, from settings and a seed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from CTMicroSRLib.errors import UsageError
from CTMicroSRLib.progress import Progress, SilentProgress, check_cancelled
from CTMicroSRLib.simulation.description import Description
from CTMicroSRLib.simulation.kernels import KERNELS, Kernel
from CTMicroSRLib.simulation.micro_scanner import MicroScannerSettings, scan_micro
from CTMicroSRLib.simulation.noise import patient_noise_hu
from CTMicroSRLib.simulation.scanner import PairedScan, ScannerSettings, scan_specimen
from CTMicroSRLib.simulation.slices import SOFTNESS
from CTMicroSRLib.simulation.specimen import SpecimenSettings, Structure, make_specimen
from CTMicroSRLib.volume import Region, Volume

MAXIMUM_SIZE_VOXELS = 256
MAXIMUM_DEPTH_MM = 100.0
MAXIMUM_SCALE = 64
PLANE_VOXELS = 3
"""A case's specimen has planes that many voxels thick: clinical slices are thicker still."""

Disease = Literal["usual", "healthy", "diseased"]

_DISEASED = ("nodule_share", "emphysema_share", "ground_glass_share", "thick_wall_share")
DISEASES: dict[Disease, dict[str, float]] = {
    "usual": {},
    "healthy": dict.fromkeys(_DISEASED, 0.0),
    "diseased": dict.fromkeys(_DISEASED, 1.0),
}
"""What a disease makes of a specimen's shares: ``usual`` leaves them, the others have none or all of nodules,
emphysema, ground glass and thickened bronchial walls."""

HOLDER_MM = 0.8
HOLDER_SHARE = 0.1
"""The micro-CT's sample holder has a wall of :data:`HOLDER_MM`, but of at most that share of the block's edge."""


@dataclass(frozen=True)
class CaseSettings:
    """One specimen and scanner; lengths in millimetres, ``size_voxels`` clinical pixels along an edge.

    Attributes:
        pixel_mm: clinical pixel, 0.2 to 2.
        psf_fwhm_mm: width of the in-plane Gaussian point spread; with a ``kernel``, that of the Gaussian like it.
        kernel: a name of :data:`~CTMicroSRLib.simulation.kernels.KERNELS`; None for the Gaussian.
        slice_mm: slice thickness, 0.5 to 5, no less than the specimen's planes.
        slice_spacing_mm: distance of the slices; None for the thickness.
        noise_hu: noise in a round patient of 320 mm; see :attr:`image_noise_hu`.
        size_voxels: clinical pixels along the specimen's edge.
        depth_mm: what the slices cover; the specimen is deeper by the soft edges of their profile.
        scale: fine voxels per clinical pixel.
        patient_mm: the patient's lateral and antero-posterior extent.
        shift_voxels_ji: fine voxels by which the clinical grid starts inside the specimen.
        disease: a key of :data:`DISEASES`.
        without: structures left out, all else as it is; kept sorted.

    Raises:
        UsageError: a value out of its range, or an unknown kernel, disease or structure.
    """

    pixel_mm: float = 0.625
    psf_fwhm_mm: float = 1.0
    kernel: str | None = None
    slice_mm: float = 1.0
    slice_spacing_mm: float | None = None
    noise_hu: float = 15.0
    size_voxels: int = 64
    depth_mm: float = 8.0
    scale: int = 8
    patient_mm: tuple[float, float] = (320.0, 320.0)
    shift_voxels_ji: tuple[int, int] = (0, 0)
    disease: Disease = "usual"
    without: tuple[Structure, ...] = ()

    def __post_init__(self) -> None:
        if not 8 <= self.size_voxels <= MAXIMUM_SIZE_VOXELS or self.size_voxels != round(self.size_voxels):
            raise UsageError(
                f"A specimen of {self.size_voxels} pixels is not possible; choose 8 to {MAXIMUM_SIZE_VOXELS}."
            )
        if not 0.2 <= self.pixel_mm <= 2.0:
            raise UsageError(f"A pixel of {self.pixel_mm} mm is not a clinical one; choose 0.2 to 2 mm.")
        if not 1 <= self.scale <= MAXIMUM_SCALE or self.scale != round(self.scale):
            raise UsageError(
                f"A pixel of {self.scale} fine voxels is not possible; give a whole scale of 1 to {MAXIMUM_SCALE}."
            )
        if self.kernel is not None:
            if self.kernel not in KERNELS:
                raise UsageError(f"There is no kernel {self.kernel!r}; choose from: {', '.join(KERNELS)}.")
            object.__setattr__(self, "psf_fwhm_mm", KERNELS[self.kernel].psf_fwhm_mm)
        if self.disease not in DISEASES:
            raise UsageError(f"There is no disease {self.disease!r}; choose from: {', '.join(DISEASES)}.")
        object.__setattr__(self, "without", tuple(sorted(set(self.without))))
        self._check_slices()
        # Made here so that a wrong scanner or specimen is refused before anything is grown for it.
        _ = self.scanner, self.specimen

    def _check_slices(self) -> None:
        if not 0 < self.depth_mm <= MAXIMUM_DEPTH_MM:
            raise UsageError(
                f"A depth of {self.depth_mm} mm is not possible; choose up to {MAXIMUM_DEPTH_MM:g} mm, above zero."
            )
        if self.slice_mm > self.depth_mm:
            raise UsageError(
                f"A slice of {self.slice_mm} mm is thicker than the specimen ({self.depth_mm} mm); change one."
            )
        if 0 < self.slice_mm < self.plane_mm:
            raise UsageError(
                f"A slice of {self.slice_mm:g} mm is thinner than the specimen's planes ({self.plane_mm:g} mm, "
                f"{PLANE_VOXELS} fine voxels); make the slice thicker or the pixel smaller."
            )

    @property
    def plane_mm(self) -> float:
        """Distance of the specimen's planes."""
        return PLANE_VOXELS * self.pixel_mm / self.scale

    @property
    def specimen(self) -> SpecimenSettings:
        """The specimen's settings."""
        edge_mm = self.size_voxels * self.pixel_mm
        planes = max(8, math.ceil((self.depth_mm + SOFTNESS * self.slice_mm) / self.plane_mm - 1e-6))
        return SpecimenSettings(
            size_mm=(edge_mm, edge_mm, planes * self.plane_mm),
            voxel_mm=self.pixel_mm / self.scale,
            slice_mm=self.plane_mm,
            without=frozenset(self.without),
            **DISEASES[self.disease],
        )

    @property
    def scanner(self) -> ScannerSettings:
        """The clinical scanner's settings."""
        return ScannerSettings(
            kernel=Kernel.gaussian(self.psf_fwhm_mm) if self.kernel is None else KERNELS[self.kernel],
            slice_thickness_mm=self.slice_mm,
            slice_spacing_mm=self.slice_mm if self.slice_spacing_mm is None else self.slice_spacing_mm,
            noise_hu=self.noise_hu,
            scale=self.scale,
            shift_voxels_ji=self.shift_voxels_ji,
            patient_mm=self.patient_mm,
        )

    @property
    def micro_scanner(self) -> MicroScannerSettings:
        """The micro-CT's settings."""
        return MicroScannerSettings(wall_mm=min(HOLDER_MM, HOLDER_SHARE * self.size_voxels * self.pixel_mm))

    @property
    def image_noise_hu(self) -> float:
        """Expected standard deviation of the clinical scan's noise: that of the patient it is of."""
        return patient_noise_hu(self.scanner)


@dataclass(frozen=True)
class Case:
    """A specimen seen by both scanners, and what is in it.

    ``micro`` is the micro-CT (uint16 grey values) on the in-plane grid of ``scan.truth``, with the specimen's planes;
    ``tissue`` (uint8 :class:`~CTMicroSRLib.simulation.description.Label`) says what each of its voxels is, none mixed.
    """

    settings: CaseSettings
    seed: int
    scan: PairedScan
    micro: Volume
    tissue: Volume
    description: Description


def make_case(settings: CaseSettings, seed: int) -> PairedScan:
    """Grow one specimen and scan it clinically; the same seed and settings give the same voxels.

    Raises:
        ResourceError: the specimen does not fit into memory.
    """
    return scan_specimen(make_specimen(settings.specimen, seed), settings.scanner, seed)


def simulate_case(settings: CaseSettings, seed: int, progress: Progress | None = None) -> Case:
    """Grow one specimen and scan it with both scanners; the clinical scan is that of :func:`make_case`.

    Raises:
        ResourceError: the specimen does not fit into memory.
        CancelledError: ``progress`` said so.
    """
    progress = progress or SilentProgress()
    check_cancelled(progress)
    specimen = make_specimen(settings.specimen, seed)
    check_cancelled(progress)
    scan = scan_specimen(specimen, settings.scanner, seed)
    check_cancelled(progress)
    micro = scan_micro(specimen, settings.micro_scanner, seed)
    (top, left), (columns, rows, _) = settings.shift_voxels_ji, scan.truth.geometry.size_ijk
    covered = Region((left, left + columns), (top, top + rows), (0, micro.geometry.size_ijk[2]))
    return Case(settings, seed, scan, micro.crop(covered), specimen.labels.crop(covered), specimen.description)
