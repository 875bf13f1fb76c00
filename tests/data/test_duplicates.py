"""Copies and groups: what is tied together."""

import numpy as np
import pandas as pd

from defectcls.data.duplicates import contradiction, first_of, split_units


def partition(units: np.ndarray) -> set[frozenset[int]]:
    """The sets of images that share a unit; the units' own numbers mean nothing."""
    return {frozenset(np.flatnonzero(units == unit).tolist()) for unit in np.unique(units)}


def test_copies_point_to_the_first() -> None:
    assert first_of([b"a", b"b", b"a", b"d", b"c", b"e", b"a", b"b"]).tolist() == [0, 1, 0, 3, 4, 5, 0, 1]
    assert first_of(np.array([5, 2, 5, 7, 2])).tolist() == [0, 1, 0, 3, 1]
    assert first_of([]).shape == (0,)


def test_a_contradiction_names_its_pair() -> None:
    """In b, of three copies two agree; g and h are copies of one label."""
    labels = ["sound", "sound", "sound", "defective", "sound", "defective", "dent", "dent"]
    samples = pd.DataFrame({"path": list("abcdefgh"), "label": labels})
    keys = [b"1", b"2", b"2", b"2", b"4", b"5", b"3", b"3"]
    said = "b (sound) and d (defective) hold the same bytes under different labels"
    assert contradiction(samples, keys) == said
    assert contradiction(samples.assign(label="sound"), keys) == ""


def test_without_groups_a_unit_is_a_set_of_copies() -> None:
    assert partition(split_units(np.array([0, 1, 0, 3, 1]), None)) == {
        frozenset({0, 2}),
        frozenset({1, 4}),
        frozenset({3}),
    }


def test_an_empty_group_name_ties_nothing() -> None:
    units = split_units(np.arange(4), pd.Series(["", "x", "", "x"]))
    assert partition(units) == {frozenset({0}), frozenset({2}), frozenset({1, 3})}


def test_near_twins_tie_as_copies_do() -> None:
    """0 -near- 1 -copy- 2 -near- 4; 3 alone."""
    near = np.array([[0, 1], [4, 2]])
    assert partition(split_units(np.array([0, 1, 1, 3, 4]), None, near)) == {
        frozenset({0, 1, 2, 4}),
        frozenset({3}),
    }


def test_ties_go_on_through_copies_and_groups_in_turn() -> None:
    """0 -group a- 1 -copy- 2 -group b- 3 -copy- 4: one unit, though 0 and 4 share neither bytes nor group."""
    identical = np.array([0, 1, 1, 3, 3, 5])
    units = split_units(identical, pd.Series(["a", "a", "b", "b", "", "c"]))
    assert partition(units) == {frozenset({0, 1, 2, 3, 4}), frozenset({5})}


def test_units_equal_those_of_a_plain_flood_fill() -> None:
    for seed in range(30):
        rng = np.random.default_rng(seed)
        count = 25
        identical = np.array([rng.integers(0, i + 1) if rng.random() < 0.2 else i for i in range(count)])
        identical = np.array([identical[i] if identical[identical[i]] == identical[i] else i for i in range(count)])
        group = pd.Series(rng.choice(["", "", "p", "q", "r", "s", "t"], count))
        expected, left = set(), set(range(count))
        while left:
            unit, edge = set(), {left.pop()}
            while edge:
                unit |= edge
                edge = {
                    j
                    for j in range(count)
                    for i in edge
                    if identical[i] == identical[j] or (group[i] == group[j] != "")
                } - unit
            expected.add(frozenset(unit))
            left -= unit
        assert partition(split_units(identical, group)) == expected
