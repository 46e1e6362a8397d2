import math
import statistics

import pytest
import torch

import equipoise as eq


def test_each_term_is_normalised_in_each_group():
    torch.manual_seed(0)
    rewards = {"right": (torch.rand(24) < 0.4).double(), "length": 100 * torch.randn(24).double()}
    found = eq.group_normalize(rewards, 6)
    for term, values in rewards.items():
        for start in range(0, 24, 6):
            group = values[start : start + 6].tolist()
            deviation = statistics.stdev(group)
            expected = [(value - statistics.mean(group)) / (deviation + 1e-4) for value in group]
            assert found[term][start : start + 6].tolist() == pytest.approx(expected, rel=1e-12, abs=1e-14)


def test_answers_without_a_reward_do_not_count():
    found = eq.group_normalize({"a": torch.tensor([1.0, math.nan, 3.0, math.nan, math.nan, 7.0])}, 3)["a"]
    root = math.sqrt(2)
    assert found.tolist() == pytest.approx([-1 / (root + 1e-4), 0.0, 1 / (root + 1e-4), 0.0, 0.0, 0.0], rel=1e-6)


def test_rewards_that_are_all_alike_give_nothing_and_kinds_stay():
    found = eq.group_normalize({"a": torch.ones(4, dtype=torch.bfloat16), "b": torch.tensor([True, False] * 2)}, 4)
    assert found["a"].dtype == torch.bfloat16
    assert not found["a"].any()
    assert found["b"].dtype == torch.float32


@pytest.mark.parametrize(
    ("rewards", "size", "error", "words"),
    [
        ([1.0], 2, TypeError, "rewards must be a mapping from term to tensor, found list"),
        ({"a": [1.0]}, 2, TypeError, "The rewards of term 'a' must be a tensor, found list"),
        ({"a": torch.ones(3)}, 2, ValueError, r"must be a vector of groups of 2, found shape \(3,\)"),
        ({"a": torch.ones(2, 2)}, 2, ValueError, r"found shape \(2, 2\)"),
        ({}, 1, ValueError, "group_size must be a number of answers ≥ 2, found 1"),
        ({}, 2.0, ValueError, "group_size must be a number of answers ≥ 2, found 2.0"),
    ],
)
def test_errors(rewards, size, error, words):
    with pytest.raises(error, match=words):
        eq.group_normalize(rewards, size)
