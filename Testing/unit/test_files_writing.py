"""Writing: exact in every format, complete or absent whatever happens, refused before any work."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from CTMicroSRLib.errors import ResourceError, UsageError
from CTMicroSRLib.files import (
    KeptAsideError,
    VolumeWriter,
    check_room,
    check_writable,
    read_any_volume,
    write_volume,
)
from CTMicroSRLib.files import writers as volume_writers
from CTMicroSRLib.volume import Geometry, Volume

SUFFIXES = (".nrrd", ".nii", ".nii.gz", ".mha")
GEOMETRY = Geometry((5, 4, 3), (0.0875, 0.0875, 1.25), (-120.0625, 30.5, 1000.125))


def voxels_kji(dtype=np.int16, shape_kji=(3, 4, 5)):
    return np.random.default_rng(11).integers(0, 200, shape_kji).astype(dtype)


@st.composite
def geometries(draw):
    """Any orientation (mirrored ones too), spacing and origin that a scan or its super-resolution has."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    orthonormal, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    spacing = tuple(draw(st.floats(0.05, 12.0)) for _ in range(3))
    origin = tuple(draw(st.floats(-2000.0, 2000.0)) for _ in range(3))
    size = tuple(draw(st.integers(1, 6)) for _ in range(3))
    return Geometry(size, spacing, origin, tuple(orthonormal.ravel().tolist()))


def corner_distance_mm(a, b):
    """Largest distance between two grids of one size, over their corners."""
    corners = [(i, j, k) for i in (0, a.size_ijk[0]) for j in (0, a.size_ijk[1]) for k in (0, a.size_ijk[2])]
    return max(np.linalg.norm(np.subtract(a.physical_point_mm(c), b.physical_point_mm(c))) for c in corners)


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(deadline=None, max_examples=30)
@given(geometry=geometries(), dtype=st.sampled_from([np.int16, np.uint8, np.float32]))
def test_any_geometry_comes_back_as_exactly_as_the_format_keeps_it(tmp_path_factory, suffix, geometry, dtype):
    path = tmp_path_factory.mktemp("geometry") / f"volume{suffix}"
    array_kji = voxels_kji(dtype, geometry.shape_kji)
    write_volume(Volume(array_kji, geometry), path)
    volume = read_any_volume(path)
    assert volume.array_kji.dtype == dtype
    np.testing.assert_array_equal(volume.array_kji, array_kji)
    # NRRD and MetaImage keep doubles: rounding of 2000 mm. NIfTI keeps float32: 2**-24 of the largest
    # coordinate (2000 mm + 6 voxels of 12 mm), 1.2e-4 mm per component and its products, summed over three.
    tolerance_mm = 1e-3 if ".nii" in suffix else 1e-10
    assert corner_distance_mm(volume.geometry, geometry) < tolerance_mm


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@settings(deadline=None, max_examples=30)
@given(geometry=geometries())
def test_nibabel_finds_every_voxel_of_a_nifti_where_the_geometry_puts_it(tmp_path_factory, suffix, geometry):
    path = tmp_path_factory.mktemp("nibabel") / f"volume{suffix}"
    array_kji = voxels_kji(np.float32, geometry.shape_kji)
    write_volume(Volume(array_kji, geometry), path)
    image = nibabel.load(path)
    np.testing.assert_array_equal(np.asarray(image.dataobj), array_kji.T)
    for affine in (image.get_sform(), image.get_qform()):
        for index in ((0, 0, 0), geometry.size_ijk):
            x, y, z = (affine @ [*index, 1])[:3]
            np.testing.assert_allclose((-x, -y, z), geometry.physical_point_mm(index), rtol=0, atol=1e-3)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32])
def test_simpleitk_reads_a_streamed_file_as_one_that_it_wrote_itself(tmp_path, suffix, dtype):
    array_kji = voxels_kji(dtype)
    write_volume(Volume(array_kji, GEOMETRY, {"Modality": "CT"}), tmp_path / f"ours{suffix}")
    own = sitk.GetImageFromArray(array_kji)
    own.SetSpacing(GEOMETRY.spacing_mm)
    own.SetOrigin(GEOMETRY.origin_mm)
    sitk.WriteImage(own, str(tmp_path / f"own{suffix}"))
    ours, own = (sitk.ReadImage(str(tmp_path / f"{name}{suffix}")) for name in ("ours", "own"))
    assert ours.GetPixelID() == own.GetPixelID()
    assert ours.GetSpacing() == own.GetSpacing()
    assert ours.GetOrigin() == own.GetOrigin()
    assert ours.GetDirection() == own.GetDirection()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(ours), sitk.GetArrayFromImage(own))


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_metadata_comes_back_as_one_line_each(tmp_path, suffix):
    metadata = {
        "Modality": "CT",
        "ConvolutionKernel": "B40f",
        "CTMicroSR.notice": "not for\ndiagnosis := research\r\n use",
    }
    write_volume(Volume(voxels_kji(), GEOMETRY, metadata), tmp_path / f"v{suffix}")
    expected = {**metadata, "CTMicroSR.notice": "not for diagnosis := research use"}
    assert read_any_volume(tmp_path / f"v{suffix}").metadata == expected


@pytest.mark.parametrize("value", ["\nsizes: 1 1 1", "\n\nencoding: gzip", "x\nDimSize = 9 9 9", "2 2 2"])
@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_metadata_cannot_change_the_header(tmp_path, suffix, value):
    path = tmp_path / f"v{suffix}"
    write_volume(Volume(voxels_kji(), GEOMETRY, {"Note": value, "NRRD_space": "x", "sizes\n: 2 2 2": value}), path)
    np.testing.assert_array_equal(read_any_volume(path).array_kji, voxels_kji())


def test_a_nrrd_says_left_posterior_superior(tmp_path):
    write_volume(Volume(voxels_kji(), GEOMETRY), tmp_path / "v.nrrd")
    assert b"\nspace: left-posterior-superior\n" in (tmp_path / "v.nrrd").read_bytes()


def test_a_mask_is_written_as_zeros_and_ones(tmp_path):
    mask_kji = voxels_kji() > 100
    write_volume(Volume(mask_kji, GEOMETRY), tmp_path / "mask.nii.gz")
    read = read_any_volume(tmp_path / "mask.nii.gz").array_kji
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, mask_kji)


def test_slices_of_any_memory_layout_are_written_in_their_order(tmp_path):
    with VolumeWriter(tmp_path / "v.nrrd", GEOMETRY, np.int16) as writer:
        for array_ji in voxels_kji():
            writer.write_slice(np.asfortranarray(array_ji))
        writer.commit()
    np.testing.assert_array_equal(read_any_volume(tmp_path / "v.nrrd").array_kji, voxels_kji())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_without_commit_nothing_is_left(tmp_path, suffix):
    with VolumeWriter(tmp_path / f"v{suffix}", GEOMETRY, np.int16) as writer:
        for array_ji in voxels_kji():
            writer.write_slice(array_ji)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_exception_midway_leaves_nothing_and_an_old_file_as_it_was(tmp_path, suffix):
    path = tmp_path / f"v{suffix}"
    path.write_bytes(b"the earlier result")

    def stop_midway():
        with VolumeWriter(path, GEOMETRY, np.int16, overwrite=True) as writer:
            writer.write_slice(voxels_kji()[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_midway()
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"the earlier result"


def test_a_commit_before_all_slices_came_is_an_error_and_leaves_nothing(tmp_path):
    with VolumeWriter(tmp_path / "v.nrrd", GEOMETRY, np.int16) as writer:
        writer.write_slice(voxels_kji()[0])
        with pytest.raises(ValueError, match="1 of 3 slices"):
            writer.commit()
    assert list(tmp_path.iterdir()) == []


def test_slices_of_another_shape_or_dtype_and_slices_too_many_are_errors(tmp_path):
    with VolumeWriter(tmp_path / "v.nrrd", GEOMETRY, np.int16) as writer:
        for wrong in (voxels_kji()[0].T, voxels_kji(np.float32)[0], voxels_kji()):
            with pytest.raises(ValueError, match="slice of"):
                writer.write_slice(wrong)
        for array_ji in voxels_kji():
            writer.write_slice(array_ji)
        with pytest.raises(ValueError, match="already"):
            writer.write_slice(voxels_kji()[0])


WRITE_UNTIL_KILLED = """
import sys, time
import numpy as np
from CTMicroSRLib.files import VolumeWriter
from CTMicroSRLib.volume import Geometry
count, size = int(sys.argv[2]), 64
with VolumeWriter(sys.argv[1], Geometry((size, size, 40), (0.1, 0.1, 1.0)), np.int16, overwrite=True) as writer:
    for k in range(count):
        writer.write_slice(np.full((size, size), k, np.int16))
    if count == 40:
        writer.commit()
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX")
@pytest.mark.parametrize("suffix", [".nrrd", ".nii.gz"])
@pytest.mark.parametrize("written", [0, 20, 40])
def test_a_killed_process_leaves_a_complete_file_or_none_and_the_next_clears_up(tmp_path, repository, suffix, written):
    path = tmp_path / f"v{suffix}"
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE_UNTIL_KILLED, str(path), str(written)],
        cwd=repository,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    complete = written == 40
    assert path.exists() == complete
    if complete:
        assert read_any_volume(path).array_kji[:, 0, 0].tolist() == list(range(40))
    else:
        assert [p.name for p in tmp_path.iterdir()] == [f".{path.name}.{process.pid}.part"]
    write_volume(Volume(voxels_kji(), GEOMETRY), path, overwrite=True)
    assert list(tmp_path.iterdir()) == [path]


def test_the_part_of_a_writer_at_work_is_left_to_it(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        part = tmp_path / f".v.nrrd.{other.pid}.part"
        part.write_bytes(b"half")
        foreign = tmp_path / ".w.nrrd.999999999.part"
        foreign.write_bytes(b"of another name")
        write_volume(Volume(voxels_kji(), GEOMETRY), tmp_path / "v.nrrd")
        assert part.exists()
        assert foreign.exists()
    finally:
        other.kill()
        other.wait()


WRITE_BEYOND_LIMIT = """
import resource, signal, sys
import numpy as np
from CTMicroSRLib.errors import CTMicroSRError
from CTMicroSRLib.files import VolumeWriter
from CTMicroSRLib.volume import Geometry
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
rng = np.random.default_rng(0)
try:
    with VolumeWriter(sys.argv[1], Geometry((256, 256, 40), (0.1, 0.1, 1.0)), np.int16) as writer:
        for k in range(40):
            writer.write_slice(rng.integers(-1000, 1000, (256, 256)).astype(np.int16))
        writer.commit()
except CTMicroSRError as error:
    print(error)
    sys.exit(error.exit_status)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_disk_that_fills_up_while_writing_ends_with_status_4_and_leaves_nothing(tmp_path, repository, suffix):
    run = subprocess.run(
        [sys.executable, "-c", WRITE_BEYOND_LIMIT, str(tmp_path / f"v{suffix}")],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 4, run.stderr
    assert "no space left" in run.stdout
    assert list(tmp_path.iterdir()) == []


def test_too_little_free_space_is_told_before_any_work(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(ResourceError, match="GB is free"):
        check_writable(tmp_path / "v.nrrd", free * 2, overwrite=False)
    huge = Geometry((40_000, 40_000, 40_000), (0.1, 0.1, 0.1))
    with pytest.raises(ResourceError, match="GB is free"):
        VolumeWriter(tmp_path / "v.nrrd", huge, np.int16)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("first", "second", "share_of_free", "fits"),
    [
        ("a.nrrd", "b.nrrd", 0.4, True),
        ("a.nrrd", "b.nrrd", 0.6, False),
        ("a.nrrd", "b.nii.gz", 0.6, True),
        ("a.nii.gz", "b.nii.gz", 5.0, True),
        ("a.nrrd", "other/b.nrrd", 0.6, True),
    ],
)
def test_volumes_of_one_disk_must_fit_together(tmp_path, monkeypatch, first, second, share_of_free, fits):
    (tmp_path / "other").mkdir()
    free = 10**9
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12 - free, free))
    monkeypatch.setattr(volume_writers, "_disk_of", lambda path: path.parent)
    geometry = Geometry((1000, 500, round(share_of_free * free / 1e6)), (1.0, 1.0, 1.0))
    paths = [tmp_path / first, tmp_path / second]
    if fits:
        check_room(paths, geometry, np.int16, overwrite=False)
    else:
        with pytest.raises(ResourceError, match=r"needs 1\.20 GB but 1\.00 GB is free"):
            check_room(paths, geometry, np.int16, overwrite=False)


class InUse:
    """os.replace on a system that does not replace an open file, for so many tries."""

    def __init__(self, name, tries):
        self.name, self.tries, self.replace = name, tries, os.replace

    def __call__(self, source, target):
        if Path(target).name == self.name and self.tries > 0:
            self.tries -= 1
            raise PermissionError(errno.EACCES, "in use by another process")
        self.replace(source, target)


def test_a_file_that_is_let_go_of_soon_is_replaced(tmp_path, monkeypatch):
    write_volume(Volume(voxels_kji() + 1, GEOMETRY), tmp_path / "v.nrrd")
    monkeypatch.setattr(os, "replace", InUse("v.nrrd", 3))
    write_volume(Volume(voxels_kji(), GEOMETRY), tmp_path / "v.nrrd", overwrite=True)
    np.testing.assert_array_equal(read_any_volume(tmp_path / "v.nrrd").array_kji, voxels_kji())
    assert [path.name for path in tmp_path.iterdir()] == ["v.nrrd"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_in_use_stays_and_the_new_volume_lies_beside_it(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"a.scan{suffix}"
    path.write_bytes(b"in a viewer")
    (tmp_path / f"a.scan-1{suffix}").write_bytes(b"kept before")
    monkeypatch.setattr(os, "replace", InUse(path.name, 1000))
    monkeypatch.setattr(volume_writers, "REPLACE_SECONDS", 0.2)
    with pytest.raises(KeptAsideError, match=rf"in use by another program .* a\.scan-2{suffix} beside it"):
        write_volume(Volume(voxels_kji(), GEOMETRY), path, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(f"a.scan{n}{suffix}" for n in ("", "-1", "-2"))
    assert path.read_bytes() == b"in a viewer"
    np.testing.assert_array_equal(read_any_volume(tmp_path / f"a.scan-2{suffix}").array_kji, voxels_kji())


@pytest.mark.parametrize("name", ["v.png", "v", "v.nrrd.txt", "v.dcm", "v.gz"])
def test_a_suffix_that_names_no_format_is_wrong_use(tmp_path, name):
    with pytest.raises(UsageError, match=r"use \.nrrd, \.nii, \.nii\.gz or \.mha"):
        check_writable(tmp_path / name, 0, overwrite=False)


def test_mhd_is_not_written_as_two_files_cannot_be_complete_or_absent(tmp_path):
    with pytest.raises(UsageError, match=r"write \.mha"):
        check_writable(tmp_path / "v.mhd", 0, overwrite=False)


def test_an_existing_file_is_replaced_only_when_asked(tmp_path):
    path = tmp_path / "v.nrrd"
    path.write_bytes(b"precious")
    with pytest.raises(UsageError, match="exists already"):
        write_volume(Volume(voxels_kji(), GEOMETRY), path)
    assert path.read_bytes() == b"precious"
    write_volume(Volume(voxels_kji(), GEOMETRY), path, overwrite=True)
    np.testing.assert_array_equal(read_any_volume(path).array_kji, voxels_kji())


def test_a_file_that_appears_while_writing_is_not_replaced(tmp_path):
    path = tmp_path / "v.nrrd"
    with VolumeWriter(path, GEOMETRY, np.int16) as writer:
        for array_ji in voxels_kji():
            writer.write_slice(array_ji)
        path.write_bytes(b"precious")
        with pytest.raises(UsageError, match="meanwhile"):
            writer.commit()
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"precious"]


def test_a_missing_folder_and_a_folder_as_name_are_wrong_use(tmp_path):
    with pytest.raises(UsageError, match="no folder"):
        check_writable(tmp_path / "nowhere" / "v.nrrd", 0, overwrite=False)
    (tmp_path / "v.nrrd").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        check_writable(tmp_path / "v.nrrd", 0, overwrite=True)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="needs a user that permissions bind")
def test_a_folder_that_may_not_be_written_is_wrong_use(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UsageError, match="cannot be written"):
            check_writable(tmp_path / "v.nrrd", 0, overwrite=False)
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_read_only_disk_is_wrong_use(tmp_path, monkeypatch, code):
    def deny(*_args, **_options):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("tempfile.TemporaryFile", deny)
    with pytest.raises(UsageError, match=f"cannot be written .{os.strerror(code)}"):
        check_writable(tmp_path / "v.nrrd", 0, overwrite=False)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that is read-only for everyone")
def test_a_folder_that_is_read_only_for_everyone_is_wrong_use():
    with pytest.raises(UsageError, match="cannot be written"):
        check_writable("/proc/self/v.nrrd", 0, overwrite=False)


def test_voxel_types_that_the_result_never_has_are_wrong_use(tmp_path):
    with pytest.raises(UsageError, match="int16, uint8 or float32"):
        write_volume(Volume(voxels_kji(np.float64), GEOMETRY), tmp_path / "v.nrrd")


def test_an_axis_longer_than_nifti_can_say_is_wrong_use(tmp_path):
    with pytest.raises(UsageError, match=r"write \.nrrd"):
        VolumeWriter(tmp_path / "v.nii", Geometry((40_000, 1, 1), (1, 1, 1)), np.uint8)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_directions_that_nifti_would_bend_are_wrong_use_and_nrrd_keeps_them(tmp_path, suffix):
    sheared = Geometry((5, 4, 3), (0.7, 0.7, 1.5), directions=(1, 4e-4, 0, 0, 1, 0, 0, 0, 1))
    with pytest.raises(UsageError, match=r"write \.nrrd"):
        write_volume(Volume(voxels_kji(), sheared), tmp_path / f"v{suffix}")
    write_volume(Volume(voxels_kji(), sheared), tmp_path / "v.nrrd")
    assert corner_distance_mm(read_any_volume(tmp_path / "v.nrrd").geometry, sheared) < 1e-6


def test_writing_takes_the_memory_of_a_slice_not_of_the_volume(tmp_path):
    geometry = Geometry((500, 500, 60), (0.1, 0.1, 1.0))  # 30 MB
    array_ji = np.zeros((500, 500), np.int16)
    for suffix in SUFFIXES:
        tracemalloc.start()
        with VolumeWriter(tmp_path / f"v{suffix}", geometry, np.int16) as writer:
            for _ in range(60):
                writer.write_slice(array_ji)
            writer.commit()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 3e6


def test_a_stale_part_of_this_very_process_id_is_written_over(tmp_path):
    (tmp_path / f".v.nrrd.{os.getpid()}.part").write_bytes(b"x" * 100_000)
    write_volume(Volume(voxels_kji(), GEOMETRY), tmp_path / "v.nrrd")
    np.testing.assert_array_equal(read_any_volume(tmp_path / "v.nrrd").array_kji, voxels_kji())


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")
@pytest.mark.parametrize("name", ["target.nrrd", "object"])
def test_of_a_link_the_file_that_it_points_to_is_written(tmp_path, name):
    (tmp_path / "store").mkdir()
    link, target = tmp_path / "link.nrrd", tmp_path / "store" / name
    link.symlink_to(target)
    write_volume(Volume(voxels_kji(), GEOMETRY), link)
    assert link.is_symlink()
    assert [path.name for path in target.parent.iterdir()] == [name]
    np.testing.assert_array_equal(read_any_volume(link).array_kji, voxels_kji())
    with pytest.raises(UsageError, match="exists already"):
        write_volume(Volume(voxels_kji(), GEOMETRY), link)
    write_volume(Volume(voxels_kji() + 1, GEOMETRY), link, overwrite=True)
    assert link.is_symlink()
    np.testing.assert_array_equal(read_any_volume(link).array_kji, voxels_kji() + 1)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")
def test_the_disk_behind_a_link_is_the_one_that_must_have_room(tmp_path, monkeypatch):
    (tmp_path / "store").mkdir()
    (tmp_path / "link.nrrd").symlink_to(tmp_path / "store" / "target.nrrd")
    free = {tmp_path: 10**9, tmp_path / "store": 1000}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 0, free[path]))
    with pytest.raises(ResourceError, match=r"target\.nrrd needs"):
        check_writable(tmp_path / "link.nrrd", 2000, overwrite=False)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")
def test_a_link_that_leads_nowhere_is_wrong_use(tmp_path):
    (tmp_path / "loop.nrrd").symlink_to(tmp_path / "loop.nrrd")
    (tmp_path / "lost.nrrd").symlink_to(tmp_path / "none" / "v.nrrd")
    for name, match in (("loop.nrrd", "leads nowhere"), ("lost.nrrd", "no folder")):
        with pytest.raises(UsageError, match=match):
            write_volume(Volume(voxels_kji(), GEOMETRY), tmp_path / name, overwrite=True)
        assert (tmp_path / name).is_symlink()
