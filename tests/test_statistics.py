"""Clustered means and paired comparisons, against published vectors, laws and simulation."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_rlm.statistics.clustered import (
    clustered_stderr,
    detectable_difference,
    mean_interval,
    t_quantile,
    unseen_share,
)
from fleet_rlm.statistics.paired import (
    Flips,
    compare,
    compare_paired,
    holm,
    minimum_detectable,
    sign_flip_p,
)
from fleet_rlm.statistics.repeated import pass_at_k, pass_hat_k, repeated
from fleet_rlm.statistics.unpaired import difference_interval

SCORES = np.array([1, 1, 0, 1, 0, 0, 0, 0, 1, 1], float)
CLUSTERS = list("aaabbbccdd")

samples = st.lists(
    st.tuples(st.floats(0, 1, allow_nan=False), st.sampled_from("abcdef")), min_size=2, max_size=40
)


def test_vectors():
    assert clustered_stderr(SCORES, CLUSTERS) == pytest.approx(0.1825742, abs=1e-7)
    own = [str(n) for n in range(10)]
    assert clustered_stderr(SCORES, own) == pytest.approx(1 / 6)
    assert clustered_stderr(SCORES, own) == pytest.approx(SCORES.std(ddof=1) / np.sqrt(10))


@pytest.mark.parametrize(
    ("df", "expected"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (5, 2.5706), (9, 2.2622), (24, 2.0639), (49, 2.0096),
     (200, 1.9719), (201, 1.9718), (1000, 1.9623), (100_000, 1.96)],
)  # fmt: skip
def test_t_quantiles(df, expected):
    assert t_quantile(0.975, df) == pytest.approx(expected, abs=5e-5)


def test_one_context_gives_no_interval():
    assert clustered_stderr(SCORES, ["a"] * 10) is None
    assert mean_interval(SCORES, ["a"] * 10) is None


def test_detectable_difference():
    assert detectable_difference(50) == pytest.approx(0.165, abs=5e-4)
    assert detectable_difference(500) == pytest.approx(0.056, abs=5e-4)
    assert detectable_difference(0) is None


@given(samples, st.randoms(use_true_random=False))
def test_order_and_names_of_contexts_do_not_matter(rows, random):
    scores, clusters = np.array([row[0] for row in rows]), [row[1] for row in rows]
    shuffled = list(rows)
    random.shuffle(shuffled)
    other = np.array([row[0] for row in shuffled])
    renamed = ["x" + row[1] for row in shuffled]
    first, second = clustered_stderr(scores, clusters), clustered_stderr(other, renamed)
    assert (first is None) == (second is None)
    if first is not None:
        assert second == pytest.approx(first, abs=1e-12)


def test_intervals_cover_the_truth():
    # 30 contexts of 1 to 7 questions with a context effect, as real suites have; nominal 95 %.
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(2000):
        clusters = np.repeat(np.arange(30), rng.integers(1, 8, 30))
        effect = rng.normal(0, 0.15, 30)[clusters]
        scores = 0.5 + effect + rng.normal(0, 0.2, len(clusters))
        low, high = mean_interval(scores, clusters)
        hits += low <= 0.5 <= high
    assert 0.935 <= hits / 2000 <= 0.965


# ---- paired ------------------------------------------------------------------------------------

paired = st.lists(
    st.tuples(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0]), st.sampled_from("abcdefg")),
    min_size=1,
    max_size=30,
)


def arms(differences, clusters):
    names = [f"s{n}" for n in range(len(differences))]
    candidate = dict(zip(names, differences, strict=True))
    return dict.fromkeys(names, 0.0), candidate, dict(zip(names, clusters, strict=True))


def test_a_clustered_comparison():
    found = compare(*arms([1, 1, 1, 1, -1, -1, 1, 1, 0, 0, 1], "aaabccddeef"))
    assert found.difference == pytest.approx(0.4545455, abs=1e-7)
    assert found.stderr == pytest.approx(0.3693022, abs=1e-7)
    assert found.p == 0.375
    assert found.detectable == pytest.approx(1.0346, abs=5e-5)
    assert (found.wins, found.losses, found.ties) == (7, 2, 2)
    assert (found.n, found.clusters, found.has_too_few_contexts) == (11, 6, False)


@pytest.mark.parametrize(
    ("sums", "p"),
    [
        ([1, 0, -1, 1, 0, 0, 1, 0], 0.625),
        ([1] * 5, 0.0625),
        ([1] * 6, 0.03125),
        ([2, 2, 1, 1, 1, 1, -1], 0.09375),
        ([0, 0, 0], 1.0),
    ],
)
def test_sign_flip_vectors(sums, p):
    assert sign_flip_p(np.array(sums, float), [str(n) for n in range(len(sums))]) == p


def test_equal_cluster_sums_give_no_width_but_a_p():
    found = compare(*arms([1, 0] * 6, "aabbccddeeff"))
    assert (found.difference, found.stderr, found.p) == (0.5, 0.0, 0.03125)
    assert (found.degenerate, found.detectable) == (True, None)
    assert not found.ci.has_width


def test_what_equal_contexts_leave_open():
    # None of 12 did it: the share q with (1 - q) ** 12 = 0.05.
    assert unseen_share(12) == pytest.approx(0.2209, abs=5e-5)
    assert (1 - unseen_share(60)) ** 60 == pytest.approx(0.05)


@given(paired)
def test_sign_flips_agree_with_brute_force(rows):
    differences, clusters = np.array([row[0] for row in rows]), [row[1] for row in rows]
    sums = [sum(d for d, c in rows if c == name) for name in sorted(set(clusters))]
    patterns = list(product([1, -1], repeat=len(sums)))
    totals = [abs(sum(s * d for s, d in zip(signs, sums, strict=True))) for signs in patterns]
    expected = sum(total >= abs(sum(sums)) - 1e-9 for total in totals) / len(patterns)
    assert sign_flip_p(differences, clusters) == pytest.approx(expected)


@given(paired)
def test_swapping_the_arms_flips_the_sign_and_keeps_p(rows):
    baseline, candidate, cluster_of = arms([row[0] for row in rows], [row[1] for row in rows])
    there, back = compare(baseline, candidate, cluster_of), compare(candidate, baseline, cluster_of)
    assert back.difference == -there.difference
    assert (back.p, back.wins, back.losses) == (there.p, there.losses, there.wins)


@given(paired)
def test_a_tied_sample_keeps_p(rows):
    differences, clusters = [row[0] for row in rows], [row[1] for row in rows]
    more = np.array([*differences, 0.0])
    assert sign_flip_p(more, [*clusters, "new"]) == sign_flip_p(np.array(differences), clusters)


def test_drawn_patterns_are_near_the_exact_p_and_seeded():
    rng = np.random.default_rng(3)
    sums = rng.normal(0.2, 1, 40)
    names = [str(n) for n in range(40)]
    first = sign_flip_p(sums, names, seed=1)
    assert first == sign_flip_p(sums, names, seed=1)
    # With 40 clusters the flipped total is close to normal.
    z = abs(sums.sum()) / np.sqrt((sums**2).sum())
    assert first == pytest.approx(math.erfc(z / math.sqrt(2)), abs=0.02)


@pytest.mark.parametrize("count", [15, 16, 17, 24])
def test_drawn_patterns_agree_with_all_patterns(count):
    # Fractions whose totals tie often, at numbers of clusters that fill bytes and that do not.
    sums = np.random.default_rng(count).choice([-1, -0.5, 0.25, 0.5, 1], count)
    totals = np.zeros(1)
    for value in sums:
        totals = np.concatenate([totals - value, totals + value])
    exact = (np.abs(totals) >= abs(sums.sum()) - 1e-9).mean()
    drawn = sign_flip_p(sums, [str(n) for n in range(count)])
    assert drawn == pytest.approx(exact, abs=4.5 * np.sqrt(exact * (1 - exact) / 20_000) + 1e-4)


def test_signs_that_many_tests_share_agree_with_all_patterns():
    # 16 contexts, some in one cell and some in several; the second score lacks a cell's samples.
    rng = np.random.default_rng(4)
    clusters = np.concatenate([np.arange(16), rng.integers(0, 16, 24)])
    cells = np.concatenate([np.arange(16) % 2, rng.integers(0, 3, 24)])
    scores = rng.choice([-1, -0.5, 0, 0.25, 1], (40, 3))
    scores[cells == 2, 1] = np.nan
    scores[:, 2] = scores[:, 0]
    flips = Flips(scores, clusters, cells)
    signs = 2 * ((np.arange(2**16)[:, None] >> np.arange(16)) & 1) - 1
    for chosen in ((0, 1, 2), (0, 1), (1, 2), (2,)):
        part = np.isin(cells, chosen)
        for column in range(3):
            values = np.nan_to_num(scores[part, column])
            sums = np.bincount(clusters[part], weights=values, minlength=16)
            exact = (np.abs(signs @ sums) >= abs(sums.sum()) - 1e-9).mean()
            drawn = flips.p(part, column)
            near = 4.5 * np.sqrt(exact * (1 - exact) / 20_000) + 1e-4
            assert drawn == pytest.approx(exact, abs=near if np.count_nonzero(sums) > 14 else 0)
        assert flips.p(part, 2) == flips.p(part, 0)
        assert Flips(-scores, clusters, cells).p(part) == flips.p(part)


@pytest.mark.parametrize(
    ("contexts", "repetitions"), [(12, 2000), (30, 1000)], ids=["all patterns", "drawn"]
)
def test_identical_arms_are_called_different_in_at_most_five_percent(contexts, repetitions):
    # Right and wrong answers to 3 questions a context, which one context effect leans one way.
    rng = np.random.default_rng(11)
    clusters = np.repeat(np.arange(contexts), 3)
    false = 0
    for _ in range(repetitions):
        effect = rng.normal(0, 0.5, contexts)[clusters]
        noise = rng.normal(0, 1, len(clusters))
        differences = np.sign(effect + noise) * (rng.random(len(clusters)) < 0.4)
        false += compare_paired(differences, clusters).p < 0.05
    assert 0.01 < false / repetitions <= 0.05


def test_holm_keeps_one_false_alarm_in_twenty_families():
    # Six comparisons of equal arms at once: how often any of them is called different.
    rng = np.random.default_rng(5)
    clusters = np.arange(12)
    any_false = alone = 0
    for _ in range(400):
        ps = [sign_flip_p(rng.normal(0, 1, 12), clusters) for _ in range(6)]
        any_false += min(holm(ps)) < 0.05
        alone += min(ps) < 0.05
    assert any_false / 400 <= 0.05 < alone / 400


@pytest.mark.parametrize(
    ("ps", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.20], [0.04, 0.09, 0.09, 0.20]),
        ([0.001, 0.02, 0.02, 0.5], [0.004, 0.06, 0.06, 0.5]),
        ([], []),
    ],
)
def test_holm(ps, adjusted):
    assert holm(ps) == pytest.approx(adjusted)


@pytest.mark.parametrize(
    ("n", "k", "c", "any_right", "all_right"),
    [(4, 2, 1, 0.5, 0.0), (4, 2, 2, 5 / 6, 1 / 6), (5, 3, 4, 1.0, 0.4), (2, 3, 1, None, None)],
)
def test_pass_at_k_and_pass_hat_k(n, k, c, any_right, all_right):
    assert pass_at_k(n, c, k) == (None if any_right is None else pytest.approx(any_right))
    assert pass_hat_k(n, c, k) == (None if all_right is None else pytest.approx(all_right))


def test_arms_without_a_common_sample_cannot_be_compared():
    assert compare({"a": 1.0}, {"b": 1.0}, {"a": "x", "b": "y"}) is None
    assert minimum_detectable(None) is None


def test_repeated_attempts_count_samples_that_have_them():
    # Three contexts: 3, 3 and 2 attempts, of which 3, 1 and 1 are right.
    found = repeated(np.array([3, 3, 2]), np.array([3, 1, 1]), ["a", "b", "c"])
    assert [(row.k, row.n, row.clusters) for row in found] == [(2, 3, 3), (3, 2, 2)]
    two, three = found
    assert (two.any_right, two.all_right) == pytest.approx(((1 + 2 / 3 + 1) / 3, 1 / 3))
    assert (three.any_right, three.all_right) == (1.0, 0.5)
    expected = mean_interval(np.array([1, 2 / 3, 1]), ["a", "b", "c"])
    assert tuple(two.any_ci) == pytest.approx(tuple(expected))
    assert repeated(np.array([1, 1]), np.array([1, 0]), ["a", "b"]) == []
    alone = repeated(np.array([4]), np.array([2]), ["a"])
    assert [(row.k, row.any_ci) for row in alone] == [(2, None), (4, None)]


def test_groups_without_common_samples():
    # equal variances of equal groups are Student's case: 4 degrees of freedom, t = 2.7764
    low, high = difference_interval([1, 2, 3], [3, 4, 5])
    assert (low, high) == pytest.approx((2 - 2.2670, 2 + 2.2670), abs=1e-4)
    assert difference_interval([1], [3, 4, 5]) is None
    assert difference_interval([1, 1], [2, 2]) is None
