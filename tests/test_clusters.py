from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from torch import Tensor

from pipeline.backbones.load import load_backbone
from pipeline.clusters import cluster_maps
from pipeline.data.images import Decoding, decode_rgb
from pipeline.saliency import layercam, scale_maps

MAPS = arrays(np.uint8, array_shapes(min_dims=3, max_dims=3, max_side=12))
FEW_VALUES = arrays(
    np.uint8,
    st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
    elements=st.sampled_from([0, 1, 7, 90, 254, 255]),
)


@pytest.fixture(scope="module")
def maps(elpv: dict[str, tuple[list[Path], list[Path]]]) -> Tensor:
    """(12,32,32) uint8: saliency of three real images at 128 pixels, four stages each."""
    backbone = load_backbone("efficientnet_lite0")
    files = [elpv["mono"][0][5], elpv["poly"][0][5], elpv["mono"][1][5]]
    images = np.stack([decode_rgb(file.read_bytes(), Decoding(128, "stretch", None), file.name) for file in files])
    raw, _ = layercam(
        backbone,
        backbone.normalise(torch.from_numpy(images).permute(0, 3, 1, 2)),
        ["blocks.1", "blocks.2", "blocks.4", "blocks.6"],
    )
    return scale_maps(raw, 32).flatten(0, 1)


def inertia(values: NDArray[np.uint8], labels: NDArray[np.uint8]) -> float:
    """Sum of squared distances of the values to the mean of their cluster."""
    groups = [values[labels == label].astype(np.float64) for label in np.unique(labels)]
    return float(sum(((group - group.mean()) ** 2).sum() for group in groups))


def best_inertia(values: NDArray[np.uint8], clusters: int) -> float:
    """The least inertia of all ways to cut the distinct values into at most K intervals."""
    distinct = np.unique(values)
    cuts = min(clusters, len(distinct)) - 1
    return min(
        inertia(values, np.searchsorted(np.array(cut), values, side="right").astype(np.uint8))
        for cut in combinations(distinct[1:], cuts)
    )


def clustered(maps: NDArray[np.uint8], clusters: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    labels, centroids = cluster_maps(torch.from_numpy(maps), clusters)
    return labels.numpy(), centroids.numpy()


@pytest.mark.parametrize("clusters", range(2, 9))
def test_inertia_is_that_of_the_best_of_ten_scikit_learn_runs(maps: Tensor, clusters: int) -> None:
    labels, _ = cluster_maps(maps, clusters)
    for values, found in zip(maps.numpy(), labels.numpy(), strict=True):
        # KMeans works on the distinct values with their counts: the same problem, in less time.
        distinct, counts = np.unique(values, return_counts=True)
        if len(distinct) <= clusters:
            assert inertia(values, found) == 0
            continue
        other = KMeans(clusters, n_init=10, random_state=0).fit(distinct[:, None].astype(float), sample_weight=counts)
        assert inertia(values, found) <= 1.001 * other.inertia_


@settings(max_examples=60, deadline=None)
@given(FEW_VALUES, st.integers(2, 7))
def test_no_other_clustering_of_few_values_has_less_inertia(maps: NDArray[np.uint8], clusters: int) -> None:
    labels, _ = clustered(maps, clusters)
    for values, found in zip(maps, labels, strict=True):
        assert inertia(values, found) == pytest.approx(best_inertia(values, clusters), rel=1e-5, abs=1e-9)


@settings(max_examples=80, deadline=None)
@given(st.one_of(MAPS, FEW_VALUES), st.integers(2, 16))
def test_labels_and_centroids_of_any_map(maps: NDArray[np.uint8], clusters: int) -> None:
    labels, centroids = clustered(maps, clusters)
    assert labels.shape == maps.shape and labels.dtype == np.uint8
    assert centroids.shape == (len(maps), clusters) and centroids.dtype == np.float32
    for values, found, centroid in zip(maps, labels, centroids, strict=True):
        used = np.unique(found)
        # All clusters are used where there are values enough, and none between others is empty.
        assert used.tolist() == list(range(min(clusters, len(np.unique(values)))))
        means = [values[found == label].mean() / 255 for label in used]
        np.testing.assert_allclose(centroid[: len(used)], means, rtol=1e-6, atol=1e-7)
        assert (np.diff(means) > 0).all()
        assert (centroid[len(used) :] == centroid[len(used) - 1]).all()
        # Clusters are intervals: a higher value is never in a lower cluster.
        order = np.argsort(values, axis=None)
        assert (np.diff(found.ravel()[order].astype(int)) >= 0).all()
        assert all(len(np.unique(found[values == value])) == 1 for value in np.unique(values))


@settings(max_examples=25, deadline=None)
@given(MAPS, st.integers(2, 6), st.randoms(use_true_random=False))
def test_a_map_is_clustered_alone(maps: NDArray[np.uint8], clusters: int, random: object) -> None:
    many = np.concatenate([maps] * 3)[:20]
    order = list(range(len(many)))
    random.shuffle(order)  # type: ignore[attr-defined]
    labels, centroids = clustered(many, clusters)
    shuffled, shuffled_centroids = clustered(many[order], clusters)
    np.testing.assert_array_equal(shuffled, labels[order])
    np.testing.assert_array_equal(shuffled_centroids, centroids[order])
    alone, alone_centroids = clustered(many[:1], clusters)
    np.testing.assert_array_equal(alone, labels[:1])
    np.testing.assert_array_equal(alone_centroids, centroids[:1])


@settings(max_examples=25, deadline=None)
@given(MAPS, st.integers(2, 6), st.randoms(use_true_random=False))
def test_where_the_cells_lie_changes_nothing(maps: NDArray[np.uint8], clusters: int, random: object) -> None:
    order = list(range(maps[0].size))
    random.shuffle(order)  # type: ignore[attr-defined]
    labels, centroids = clustered(maps, clusters)
    moved, moved_centroids = clustered(maps.reshape(len(maps), -1)[:, order].reshape(maps.shape), clusters)
    np.testing.assert_array_equal(moved.reshape(len(maps), -1), labels.reshape(len(maps), -1)[:, order])
    np.testing.assert_array_equal(moved_centroids, centroids)


@pytest.mark.parametrize("value", [0, 100, 255])
def test_a_flat_map_is_one_cluster(value: int) -> None:
    labels, centroids = clustered(np.full((2, 5, 7), value, np.uint8), 4)
    assert (labels == 0).all()
    np.testing.assert_allclose(centroids, value / 255, rtol=1e-6)


def test_a_lone_cell_between_two_crowds_gets_its_cluster() -> None:
    # Its share of the map's inertia is smaller than float32 can hold.
    values = np.repeat(np.array([0, 254, 255], np.uint8), [2048, 1, 2047]).reshape(1, 64, 64)
    labels, centroids = clustered(values, 3)
    assert [np.unique(values[labels == label]).tolist() for label in range(3)] == [[0], [254], [255]]
    np.testing.assert_allclose(centroids[0], np.array([0, 254, 255]) / 255, rtol=1e-6)


def test_largest_maps() -> None:
    random = np.random.default_rng(0)
    maps = (255 * random.random((9, 256, 256)) ** 4).astype(np.uint8)
    labels, centroids = clustered(maps, 4)
    for values, found in zip(maps, labels, strict=True):
        distinct, counts = np.unique(values, return_counts=True)
        other = KMeans(4, n_init=3, random_state=0).fit(distinct[:, None].astype(float), sample_weight=counts)
        assert inertia(values, found) <= 1.0001 * other.inertia_
    assert (np.diff(centroids, axis=1) > 0).all()
