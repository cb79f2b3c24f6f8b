"""Scans on disk for tests, DICOM series among them, and what lies in a folder."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

GIVEN = ("--psf-fwhm-mm", "1.1", "--noise-hu", "20")
"""Blur and noise, so that nothing is estimated."""


def write_scan(
    path,
    array,
    spacing_mm=(0.7, 0.8, 1.5),
    origin_mm=(-31.5, 12.25, 404.0),
    directions=None,
    *,
    compress=False,
    metadata=(),
):
    """An image file of any dimension, type and header."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([*spacing_mm, 1.0][: image.GetDimension()])
    image.SetOrigin([*origin_mm, 0.0][: image.GetDimension()])
    if directions is not None:
        image.SetDirection(directions)
    for key, value in dict(metadata).items():
        image.SetMetaData(key, value)
    sitk.WriteImage(image, str(path), compress)
    return path


def tree(folder):
    """Every file below a folder, with its content."""
    return {str(f.relative_to(folder)): f.read_bytes() if f.is_file() else None for f in folder.rglob("*")}


ROWS, COLUMNS = 6, 5
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def stored_slice(k):
    array_ji = np.random.default_rng(k).integers(24, 1400, (ROWS, COLUMNS)).astype(np.int16)
    array_ji[0, :2] = 0, 1100
    return array_ji


def write_slice(path, position, stored_ji, *, series, orientation=AXIAL, **tags):
    """One small CT image; tags are set last, None deletes one."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = tags.get("SOPClassUID", CTImageStorage)
    meta.MediaStorageSOPInstanceUID = tags.get("SOPInstanceUID", generate_uid())
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.SeriesInstanceUID, data.StudyInstanceUID, data.Modality = series, "1.2.3", "CT"
    data.PatientName, data.PatientID, data.PatientBirthDate = "Doe^Jane", "77", "19500101"
    data.Rows, data.Columns = stored_ji.shape[:2]
    data.PixelSpacing, data.SliceThickness = [0.8, 0.7], "1.25"
    data.ImagePositionPatient = [f"{x:.6f}" for x in position]
    data.ImageOrientationPatient = [f"{x:.9f}" for x in orientation]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 1
    data.RescaleSlope, data.RescaleIntercept = "1", "-1024"
    data.ConvolutionKernel, data.SeriesDescription = "B40f", "Thorax"
    data.PixelData = stored_ji.tobytes()
    for name, value in tags.items():
        if value is None:
            del data[name]
        else:
            setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


def write_series(folder, heights=(0.0, 2.0, 4.0, 6.0), *, series="1.2.3.4", names="slice{:02}.dcm", **tags):
    folder.mkdir(exist_ok=True)
    return [
        write_slice(folder / names.format(k), (-10.0, -20.0, height), stored_slice(k), series=series, **tags)
        for k, height in enumerate(heights)
    ]
