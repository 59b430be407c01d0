"""Fusion of objects: what experts agree on is kept, and what touches stays apart."""

from itertools import permutations

import numpy as np
import pytest
from scipy import ndimage

from df2serve.core.metrics import label_components, match_instances, mean_average_precision
from df2serve.errors import InputError
from df2serve.testing import CellScene, generate_cells, simulate_experts
from df2serve_training.ground_truth import Annotation, fuse_instances, staple

RULES = {"match_iou": 0.2, "min_votes": 0.5, "min_apart": 0.4}


def row(*labels, classes=None):
    labels = np.array([labels], np.int32)
    if classes is None:
        return Annotation.of_instances(labels)
    return Annotation(np.array([0, *classes], np.uint8)[labels], labels)


def outlined(sample, masks):
    """Return experts who outline every cell on its own: marked pixels go to the nearest cell."""
    n_cells = int(sample.labels.max())
    objects = np.where(sample.distractors > 0, sample.distractors + n_cells, sample.labels)
    nearest = ndimage.distance_transform_edt(
        objects == 0, return_distances=False, return_indices=True
    )
    return [
        Annotation.of_instances(np.where(mask > 0, objects[tuple(nearest)], 0))
        for mask in masks.values()
    ]


def touching(labels):
    """Return pairs of cells that have neighboring pixels."""
    highest = ndimage.maximum_filter(labels, 3)
    border = (labels > 0) & (highest > labels)
    return np.unique(np.stack([labels[border], highest[border]]), axis=1).T


def apart_and_merged(truth, labels):
    """Count touching cells that are found as two objects, and those that are found as one.

    A cell is found as the object that covers most of it.
    """
    main = {}
    for cell in np.unique(truth[truth > 0]):
        found = labels[truth == cell]
        main[cell] = np.bincount(found).argmax() if found.any() else 0
    pairs = [(main[one], main[other]) for one, other in touching(truth)]
    found = [pair for pair in pairs if 0 not in pair]
    return np.array([sum(a != b for a, b in found), sum(a == b for a, b in found)])


def test_experts_who_agree_are_reproduced_with_what_touches():
    sample = generate_cells(CellScene(shape=(160, 160), n_cells=20, touching=0.6), seed=1)
    annotation = Annotation.of_instances(sample.labels)
    fusion = fuse_instances([annotation] * 3, **RULES)
    same = np.unique(np.stack([fusion.labels.ravel(), sample.labels.ravel()]), axis=1)
    assert same.shape[1] == 1 + sample.labels.max()  # one to one, background included
    assert all(found.votes == found.support == 3 for found in fusion.objects)
    areas = np.bincount(fusion.labels.ravel())[1:]
    assert [found.area_px for found in fusion.objects] == areas.tolist()
    assert label_components(fusion.labels > 0).max() < len(fusion.objects)  # some touch
    assert label_components(fusion.classes).max() == len(fusion.objects)  # not in the mask


def test_order_of_the_experts_does_not_matter():
    sample = generate_cells(CellScene(shape=(96, 96), n_cells=8, touching=0.5), seed=2)
    annotations = outlined(sample, simulate_experts(sample, seed=2))[:4]
    expected = fuse_instances(annotations, **RULES)
    for order in list(permutations(range(4)))[1::5]:
        fusion = fuse_instances([annotations[index] for index in order], **RULES)
        np.testing.assert_array_equal(fusion.labels > 0, expected.labels > 0)
        np.testing.assert_array_equal(fusion.classes, expected.classes)


def test_touching_cells_stay_apart_where_pixels_would_merge_them():
    scores = {"objects": [], "pixels": []}
    counts = {"objects": np.zeros(2, int), "pixels": np.zeros(2, int)}
    for seed in range(3):
        sample = generate_cells(CellScene(shape=(256, 256), n_cells=40, touching=0.4), seed)
        annotations = outlined(sample, simulate_experts(sample, seed))
        masks = [annotation.classes for annotation in annotations]
        pixels = staple(masks, n_classes=2, max_iterations=100).classes
        for name, labels in (
            ("objects", fuse_instances(annotations, **RULES).labels),
            ("pixels", label_components(pixels)),
        ):
            counts[name] += apart_and_merged(sample.labels, labels)
            matches = match_instances(sample.labels, labels)
            scores[name].append(mean_average_precision(matches))
    apart, merged = counts["objects"]
    assert apart > 20
    assert merged == 0
    apart, merged = counts["pixels"]
    assert apart == 0
    assert merged > 20
    assert min(scores["objects"]) > 0.85
    assert max(scores["pixels"]) < 0.5


def test_masks_without_objects_gain_from_experts_who_leave_gaps():
    """Components of semantic masks: merged in most, apart in those of the tight expert."""
    gained = []
    for seed in range(3):
        sample = generate_cells(CellScene(shape=(256, 256), n_cells=40, touching=0.4), seed)
        masks = [mask > 0 for mask in simulate_experts(sample, seed).values()]
        annotations = [Annotation.of_classes(mask.astype(np.uint8)) for mask in masks]
        pixels = staple([a.classes for a in annotations], n_classes=2, max_iterations=100).classes
        scores = [
            mean_average_precision(match_instances(sample.labels, labels))
            for labels in (fuse_instances(annotations, **RULES).labels, label_components(pixels))
        ]
        gained.append(scores[0] - scores[1])
    assert min(gained) > 0.05


def test_an_object_needs_its_share_of_votes():
    seen, unseen = row(0, 1, 1, 0), row(0, 0, 0, 0)
    assert not fuse_instances([seen, unseen, unseen], **RULES).objects
    (half,) = fuse_instances([seen, seen, unseen, unseen], **RULES).objects
    assert (half.votes, half.support, half.area_px) == (2, 2, 2)
    assert not fuse_instances([seen, seen, unseen, unseen], **RULES | {"min_votes": 0.6}).objects


def test_one_expert_alone_does_not_split_but_two_of_five_do():
    whole, split = row(1, 1, 1, 1, 1, 1), row(1, 1, 1, 2, 2, 2)
    fusion = fuse_instances([whole, whole, whole, whole, split], **RULES)
    assert fusion.labels.tolist() == [[1, 1, 1, 1, 1, 1]]
    assert (fusion.objects[0].votes, fusion.objects[0].support) == (5, 5)
    fusion = fuse_instances([whole, whole, whole, split, split], **RULES)
    assert fusion.labels.tolist() == [[1, 1, 1, 2, 2, 2]]
    assert [(found.votes, found.support) for found in fusion.objects] == [(5, 5), (2, 5)]


def test_pixels_are_decided_among_those_who_drew_the_object():
    wide, narrow = row(1, 1, 1, 1, 1, 0), row(0, 1, 1, 1, 0, 0)
    unseen = row(0, 0, 0, 0, 0, 0)
    assert fuse_instances([wide, wide, narrow, unseen], **RULES).labels.tolist() == [
        [1, 1, 1, 1, 1, 0]
    ]
    tie = [wide, narrow, unseen]
    assert fuse_instances(tie, **RULES).labels.tolist() == [[0, 1, 1, 1, 0, 0]]
    assert fuse_instances(tie, **RULES, tie_breaker=0).labels.tolist() == [[1, 1, 1, 1, 1, 0]]
    assert fuse_instances(tie, **RULES, tie_breaker=1).labels.tolist() == [[0, 1, 1, 1, 0, 0]]


def test_what_is_left_of_an_object_is_one_piece():
    ring = row(1, 1, 1, 0, 1)
    (found,) = fuse_instances([ring], **RULES).objects
    assert found.area_px == 3


def test_remains_of_an_object_that_others_took_over_are_dropped():
    large = row(1, 1, 1, 1, 1, 1, 1, 1, 1, 1)
    small = row(1, 2, 3, 4, 5, 6, 7, 8, 9, 0)
    fusion = fuse_instances([large, large, large, small, small], **RULES)
    assert fusion.labels.tolist() == [[*range(1, 10), 0]]
    assert {found.votes for found in fusion.objects} == {2}


def test_class_is_voted_and_only_objects_of_one_class_are_cut():
    first = row(1, 1, 1, 2, 2, 2, 0, 3, classes=[1, 2, 2])
    second = row(1, 1, 1, 2, 2, 2, 0, 3, classes=[1, 2, 1])
    third = row(1, 1, 1, 2, 2, 2, 0, 3, classes=[2, 2, 1])
    fusion = fuse_instances([first, second, third], **RULES)
    assert [found.class_index for found in fusion.objects] == [1, 2, 1]
    assert fusion.classes.tolist() == [[1, 1, 1, 2, 2, 2, 0, 1]]
    same = row(1, 1, 1, 2, 2, 2, 0, 3, classes=[2, 2, 1])
    fusion = fuse_instances([same] * 3, **RULES)
    assert fusion.labels.tolist() == [[1, 1, 1, 2, 2, 2, 0, 3]]
    assert fusion.classes.tolist() == [[2, 2, 2, 0, 2, 2, 0, 1]]


@pytest.mark.parametrize("n_experts", [1, 3])
def test_nothing_drawn_gives_nothing(n_experts):
    fusion = fuse_instances([row(0, 0, 0)] * n_experts, **RULES)
    assert fusion.objects == ()
    assert fusion.labels.tolist() == fusion.classes.tolist() == [[0, 0, 0]]


def test_annotations_of_several_sizes_are_refused():
    with pytest.raises(InputError, match=r"sizes \(1, 2\), \(1, 3\); expected at least one"):
        fuse_instances([row(0, 0), row(0, 0, 0)], **RULES)
    with pytest.raises(InputError, match="0 annotations of sizes none"):
        fuse_instances([], **RULES)
