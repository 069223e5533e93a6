"""The pair loss against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import tensor

from reward.losses import count_correct, preference_loss

ONE = tensor([1.0])
HALF = tensor([0.5])
ZERO = tensor([0.0])


@pytest.mark.parametrize(
    ("a", "b", "label_a", "label_b", "expected"),
    [
        (20.0, 19.0, 1.0, 0.0, 0.31326169),  # -ln sigmoid(1)
        (20.0, 19.0, 0.0, 1.0, 1.31326169),  # -ln sigmoid(-1)
        (20.0, 20.0, 1.0, 0.0, 0.69314718),  # ln 2
        (20.0, 20.0, 0.5, 0.5, 0.0),  # a tie that is called a tie
        (21.0, 19.0, 0.5, 0.5, 0.43378083),  # (0.12692801 + 2.12692801) / 2 - ln 2
        (90.0, -90.0, 0.0, 1.0, 180.0),
    ],
)
def test_one_pair(a: float, b: float, label_a: float, label_b: float, expected: float) -> None:
    loss = preference_loss(tensor([a]), tensor([b]), tensor([label_a]), tensor([label_b]), ONE)
    assert loss.dtype == torch.float32 and loss.ndim == 0
    assert loss.item() == pytest.approx(expected, abs=2e-6)


def batch() -> list[torch.Tensor]:
    score_a, score_b = tensor([20.0, 21.0, 18.0]), tensor([19.0, 19.0, 18.5])
    return [score_a, score_b, tensor([1.0, 0.5, 0.0]), tensor([0.0, 0.5, 1.0]), tensor([1.0, 0.5, 0.25])]


def test_weights_are_normalised_over_the_batch() -> None:
    # (1 * 0.31326169 + 0.5 * 0.43378083 + 0.25 * 0.47407698) / 1.75;  -ln sigmoid(0.5) = 0.47407698
    assert preference_loss(*batch()).item() == pytest.approx(0.37066934, abs=1e-6)


def test_shares_of_a_global_batch_sum_to_its_loss() -> None:
    whole = preference_loss(*batch())
    shares = [preference_loss(*(x[s] for x in batch()), total_weight=1.75) for s in (slice(0, 1), slice(1, 3))]
    torch.testing.assert_close(shares[0] + shares[1], whole)


def test_gradient_of_a_tie_pulls_the_scores_together() -> None:
    a, b = tensor([21.0], requires_grad=True), tensor([19.0], requires_grad=True)
    preference_loss(a, b, HALF, HALF, ONE).backward()
    assert a.grad.item() == pytest.approx(0.38079708, abs=1e-6)  # sigmoid(2) - 1/2
    assert b.grad.item() == pytest.approx(-0.38079708, abs=1e-6)


def test_shapes_have_to_agree() -> None:
    with pytest.raises(ValueError, match=r"expected one shape \[B\]"):
        preference_loss(ONE, ONE, ONE, ZERO, tensor([1.0, 1.0]))


def test_ties_leave_the_count() -> None:
    labels_a, labels_b = tensor([1.0, 0.0, 0.5, 1.0]), tensor([0.0, 1.0, 0.5, 0.0])
    right = count_correct(tensor([2.0, 2.0, 2.0, 1.0]), tensor([1.0, 1.0, 1.0, 1.0]), labels_a, labels_b)
    assert right == (1, 3)  # equal scores are not right
