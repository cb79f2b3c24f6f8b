"""Geometry: where voxels are, at any direction cosines, checked against SimpleITK's own arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from CTMicroSRLib.errors import RefusedInputError, UsageError
from CTMicroSRLib.volume import Geometry, Region, Volume

TOLERANCE_MM = 1e-9


@st.composite
def geometries(draw, largest=60):
    """Any orientation (mirrored ones too), spacing, origin and size."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    orthonormal, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    spacing = tuple(draw(st.floats(0.2, 12.0)) for _ in range(3))
    origin = tuple(draw(st.floats(-2000.0, 2000.0)) for _ in range(3))
    size = tuple(draw(st.integers(1, largest)) for _ in range(3))
    return Geometry(size, spacing, origin, tuple(orthonormal.ravel().tolist()))


@st.composite
def geometries_with_region(draw):
    geometry = draw(geometries())
    ranges = []
    for size in geometry.size_ijk:
        start = draw(st.integers(0, size - 1))
        ranges.append((start, draw(st.integers(start + 1, size))))
    return geometry, Region(*ranges)


scales = st.tuples(*[st.sampled_from([1, 2, 3, 4, 8])] * 3)


def itk_image(geometry, *, size_ijk=(1, 1, 1)):
    """An ITK image on the grid; ITK maps indices beyond the image too, so that it can stay small."""
    image = sitk.Image(list(size_ijk), sitk.sitkInt16)
    image.SetSpacing(geometry.spacing_mm)
    image.SetOrigin(geometry.origin_mm)
    image.SetDirection(geometry.directions)
    return image


def itk_point(geometry, index_ijk):
    return itk_image(geometry).TransformContinuousIndexToPhysicalPoint([float(n) for n in index_ijk])


@given(geometries(), st.tuples(*[st.floats(-100, 600)] * 3))
def test_a_voxels_position_is_the_one_that_itk_computes(geometry, index_ijk):
    np.testing.assert_allclose(
        geometry.physical_point_mm(index_ijk), itk_point(geometry, index_ijk), rtol=0, atol=TOLERANCE_MM
    )


@given(geometries(), scales, st.tuples(*[st.floats(0.0, 1.0)] * 3))
def test_a_fine_voxel_lies_where_it_is_in_the_coarse_voxel_it_was_cut_from(geometry, scale_ijk, share):
    fine = geometry.refine(scale_ijk)
    index = np.floor(np.multiply(share, np.subtract(fine.size_ijk, 1)))
    inside_coarse = (index + 0.5) / np.asarray(scale_ijk) - 0.5
    np.testing.assert_allclose(itk_point(fine, index), itk_point(geometry, inside_coarse), rtol=0, atol=TOLERANCE_MM)


@given(geometries(), scales)
def test_the_refined_grid_covers_the_same_physical_extent(geometry, scale_ijk):
    fine = geometry.refine(scale_ijk)
    for corner in np.ndindex(2, 2, 2):
        edge_of_fine = [n - 0.5 if at else -0.5 for at, n in zip(corner, fine.size_ijk, strict=True)]
        edge_of_coarse = [n - 0.5 if at else -0.5 for at, n in zip(corner, geometry.size_ijk, strict=True)]
        np.testing.assert_allclose(
            itk_point(fine, edge_of_fine), itk_point(geometry, edge_of_coarse), rtol=0, atol=TOLERANCE_MM
        )


@given(geometries())
def test_eight_times_finer_in_plane_moves_the_origin_by_seven_sixteenths_of_a_voxel(geometry):
    fine = geometry.refine((8, 8, 1))
    matrix = np.reshape(geometry.directions, (3, 3))
    i_mm, j_mm, _ = geometry.spacing_mm
    expected = np.asarray(geometry.origin_mm) - 7 / 16 * (i_mm * matrix[:, 0] + j_mm * matrix[:, 1])
    np.testing.assert_allclose(fine.origin_mm, expected, rtol=0, atol=TOLERANCE_MM)
    assert fine.spacing_mm == pytest.approx((i_mm / 8, j_mm / 8, geometry.spacing_mm[2]), rel=1e-15)
    assert fine.directions == geometry.directions


@given(geometries_with_region())
def test_a_cropped_voxel_keeps_its_value_and_its_position(geometry_and_region):
    geometry, region = geometry_and_region
    array = np.arange(np.prod(geometry.size_ijk), dtype=np.float32).reshape(geometry.shape_kji)
    part = Volume(array, geometry).crop(region)
    start = (region.i[0], region.j[0], region.k[0])
    last = np.subtract(part.geometry.size_ijk, 1)
    for index in ((0, 0, 0), tuple(last.tolist())):
        i, j, k = np.add(start, index)
        assert part.array_kji[index[::-1]] == array[k, j, i]
        np.testing.assert_allclose(
            itk_point(part.geometry, index), itk_point(geometry, (i, j, k)), rtol=0, atol=TOLERANCE_MM
        )


@given(geometries_with_region(), scales)
def test_cropping_then_refining_is_refining_then_cropping(geometry_and_region, scale_ijk):
    geometry, region = geometry_and_region
    i, j, k = (
        tuple(n * scale for n in ends) for ends, scale in zip((region.i, region.j, region.k), scale_ijk, strict=True)
    )
    one, other = geometry.crop(region).refine(scale_ijk), geometry.refine(scale_ijk).crop(Region(i, j, k))
    assert one.size_ijk == other.size_ijk
    np.testing.assert_allclose(one.origin_mm, other.origin_mm, rtol=0, atol=TOLERANCE_MM)


def test_a_crop_is_a_view_and_not_a_copy():
    volume = Volume(np.zeros((3, 4, 5), np.int16), Geometry((5, 4, 3), (1.0, 1.0, 1.0)))
    assert np.shares_memory(volume.crop(Region((1, 3), (0, 2), (2, 3))).array_kji, volume.array_kji)


@given(geometries_with_region())
def test_a_regions_text_reads_back_as_the_region(geometry_and_region):
    region = geometry_and_region[1]
    assert Region.parse(str(region)) == region


@pytest.mark.parametrize(
    "text",
    [
        "",
        "lung",
        "1:2",
        "1:2,3:4",
        "1:2,3:4,5:6,7:8",
        "1:2,3:4,5",
        "1:2:3,4:5,6:7",
        "a:b,1:2,3:4",
        "1.5:2,3:4,5:6",
        ":,:,:",
    ],
)
def test_a_region_of_another_form_is_refused(text):
    with pytest.raises(UsageError, match="I0:I1,J0:J1,K0:K1"):
        Region.parse(text)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("bad", [(-1, 3), (2, 2), (3, 2), (0, 11), (10, 11)])
def test_a_region_that_is_empty_or_leaves_the_scan_is_refused_and_named(axis, bad):
    ranges = [(0, 10)] * 3
    ranges[axis] = bad
    with pytest.raises(UsageError, match="region " + "IJK"[axis]):
        Geometry((10, 10, 10), (1.0, 1.0, 1.0)).crop(Region(*ranges))


@given(geometries_with_region(), st.integers(0, 80))
def test_a_grown_region_stays_in_the_grid_and_in_its_slices(geometry_and_region, margin):
    geometry, region = geometry_and_region
    grown = region.grow(margin, geometry.size_ijk)
    grown.check_inside(geometry.size_ijk)
    assert grown.k == region.k
    for ends, wider, size in zip((region.i, region.j), (grown.i, grown.j), geometry.size_ijk, strict=False):
        assert wider == (max(0, ends[0] - margin), min(size, ends[1] + margin))


def test_the_whole_region_is_the_whole_grid():
    assert Region.whole((3, 4, 5)) == Region((0, 3), (0, 4), (0, 5))


@pytest.mark.parametrize(
    "change",
    [
        {"size_ijk": (0, 4, 4)},
        {"spacing_mm": (1.0, 0.0, 1.0)},
        {"spacing_mm": (1.0, -1.0, 1.0)},
        {"spacing_mm": (1.0, float("nan"), 1.0)},
        {"spacing_mm": (1.0, float("inf"), 1.0)},
        {"origin_mm": (0.0, float("nan"), 0.0)},
        {"directions": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.1, 1.0)},
        {"directions": (2.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)},
        {"directions": (0.0,) * 9},
        {"directions": (float("nan"),) * 9},
        {"directions": (1.0, 0.0, 0.0, 1.0)},
    ],
    ids=str,
)
def test_a_grid_that_is_no_grid_is_refused(change):
    good = {"size_ijk": (4, 4, 4), "spacing_mm": (1.0, 1.0, 1.0)}
    Geometry(**good)
    with pytest.raises(RefusedInputError):
        Geometry(**{**good, **change})


def test_an_array_of_another_shape_than_the_grid_is_refused():
    with pytest.raises(RefusedInputError, match="order"):
        Volume(np.zeros((5, 4, 3), np.int16), Geometry((5, 4, 3), (1.0, 1.0, 1.0)))


@settings(max_examples=20)
@given(geometries(largest=12))
def test_a_marker_resampled_by_itk_onto_the_fine_grid_stays_in_its_place(geometry):
    """Nearest-neighbour resampling by ITK, which knows only the two headers, is plain repetition of voxels."""
    array = np.random.default_rng(0).integers(0, 1000, geometry.shape_kji).astype(np.int16)
    image = sitk.GetImageFromArray(array)
    image.CopyInformation(itk_image(geometry, size_ijk=geometry.size_ijk))
    fine = geometry.refine((4, 4, 1))
    resampled = sitk.Resample(
        image,
        fine.size_ijk,
        sitk.Transform(),
        sitk.sitkNearestNeighbor,
        fine.origin_mm,
        fine.spacing_mm,
        fine.directions,
    )
    np.testing.assert_array_equal(sitk.GetArrayFromImage(resampled), array.repeat(4, axis=1).repeat(4, axis=2))
