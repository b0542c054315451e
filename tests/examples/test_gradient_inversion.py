"""One plain update gives its record away; a private update, a masked share and a large enough sum do not.

Everything is deterministic but the private update, whose noise comes from the operating system. Its bounds are stated
where they are checked.
"""

from dataclasses import astuple
from itertools import pairwise
from pathlib import Path

import gradient_inversion as example
import numpy as np
import pytest
import torch
from torch import Tensor

from fl_client.preprocessing import Examples
from fl_contract.study import Study
from fl_contract.study_file import load_study

ROWS = list(range(example.NUM_RECORDS))


@pytest.fixture(scope="module")
def study() -> Study:
    return load_study("digits")


@pytest.fixture(scope="module")
def records(study: Study) -> Examples:
    return example.load_records(study)


@pytest.fixture(scope="module")
def rebuilt(study: Study, records: Examples) -> dict[str, Tensor]:
    assert records.labels[ROWS].tolist() == [0, 1, 2, 3, 4, 5]
    return example.attack(study, records, ROWS)


def _scores(rebuilt: dict[str, Tensor], view: str, records: Examples) -> list[example.Score]:
    return [
        example.score(image, records.inputs[row], records.inputs)
        for image, row in zip(rebuilt[view], ROWS, strict=True)
    ]


@pytest.mark.slow
def test_a_plain_update_gives_every_image_away(rebuilt: dict[str, Tensor], records: Examples) -> None:
    scores = _scores(rebuilt, "plain", records)

    # One search in a hundred or so stops at a blurred image, and which one it is may depend on the processor.
    assert sum(score.rank == 1 for score in scores) >= 5  # nearer to the true image than to 1,796 others
    assert np.mean([score.correlation for score in scores]) > 0.95
    assert np.mean([score.error for score in scores]) < 0.1


@pytest.mark.slow
def test_a_private_update_gives_nothing_away(rebuilt: dict[str, Tensor], records: Examples) -> None:
    scores = _scores(rebuilt, "private", records)

    # Over 60 records and as many draws of noise the correlations had mean 0.03 and deviation 0.14, the errors were at
    # least 2.4, and the ranks spread over 1 to 1,797. So a mean of six lies four deviations inside its bound, and two
    # first places of six have probability 15 / 1797^2, one in 200,000.
    assert abs(np.mean([score.correlation for score in scores])) < 0.3
    assert np.mean([score.error for score in scores]) > 2
    assert sum(score.rank == 1 for score in scores) <= 1


@pytest.mark.slow
@pytest.mark.parametrize(("view", "largest_mean_correlation"), [("masked share", 0.1), ("sum, by records", 0.5)])
def test_secure_aggregation_hides_a_record_among_many(
    rebuilt: dict[str, Tensor], records: Examples, view: str, largest_mean_correlation: float
) -> None:
    scores = _scores(rebuilt, view, records)

    assert np.mean([score.correlation for score in scores]) < largest_mean_correlation
    assert sum(score.rank == 1 for score in scores) == 0
    assert np.mean([score.error for score in scores]) > 1  # a blind guess of the mean image would have been nearer


@pytest.mark.slow
def test_a_sum_that_counts_hospitals_alike_gives_a_hospital_of_one_record_away(
    rebuilt: dict[str, Tensor], records: Examples
) -> None:
    scores = _scores(rebuilt, "sum, by hospitals", records)

    assert sum(score.rank == 1 for score in scores) >= 5


def test_a_plain_update_shows_the_label(study: Study, records: Examples) -> None:
    model = example.initial_model(study)

    num_classes = len(study.data_schema.classes)
    read = [
        example.read_label(example.plain_update(model, records.inputs[[row]], records.labels[[row]]), num_classes)
        for row in ROWS
    ]

    assert read == [0, 1, 2, 3, 4, 5]


def test_masks_cancel_in_the_sum_and_hide_what_a_share_holds() -> None:
    updates = [torch.tensor([1.5, -2.25]), torch.tensor([0.5, 4.0]), torch.tensor([-3.0, 0.25])]
    nothing = [torch.zeros(2)] * 3

    shares = example.masked_shares(updates, np.random.default_rng(3))
    masks = example.masked_shares(nothing, np.random.default_rng(3))

    total = example.read_numbers(shares.sum(axis=0, dtype=np.uint32))
    assert total.tolist() == [-1.0, 2.0]  # 1.5 + 0.5 - 3 and -2.25 + 4 + 0.25
    own_part = example.read_numbers(shares - masks)  # what is left of each share without its masks
    assert torch.equal(own_part, torch.stack(updates))


def test_a_share_of_nothing_is_uniform_over_all_numbers() -> None:
    shares = example.masked_shares([torch.zeros(100_000)] * 2, np.random.default_rng(3))

    # 16 equal intervals of 6,250 each; a count deviates by sqrt(1e5 * 1/16 * 15/16) = 77, and the bound is 5 of them.
    counts, _ = np.histogram(shares[0], bins=16, range=(0, 2**32))
    assert np.abs(counts - 6250).max() < 385


def test_a_score_is_worked_out_by_hand() -> None:
    truth = torch.tensor([1.0, -1.0, 1.0, -1.0])
    records = torch.stack([truth, -truth, torch.tensor([1.0, 1.0, -1.0, -1.0]), torch.tensor([3.0, 1.0, -1.0, -3.0])])

    perfect = example.score(truth, truth, records)
    opposite = example.score(-truth, truth, records)

    # The mean image is (1, 0.5, -0.5, -1): its squared distance to the truth is 0 + 2.25 + 2.25 + 0 = 4.5. The opposite
    # has squared distance 4 * 4 = 16, correlates -1 with the truth, 0 with the third and -4 / (2 * sqrt(20)) with the
    # fourth image: all three others come first.
    assert astuple(perfect) == pytest.approx((1, 0, 1))
    assert astuple(opposite) == pytest.approx((-1, 16 / 4.5, 4))


def test_the_picture_has_a_line_for_the_truth_and_for_each_view(tmp_path: Path) -> None:
    images = torch.zeros(2, 1, 8, 8)
    heights = []
    for number in (1, 2, 3):
        path = tmp_path / f"{number}.png"
        example.save_picture(images, {f"view {view}": images for view in range(number)}, path)
        heights.append(int.from_bytes(path.read_bytes()[20:24], "big"))  # PNG: height in bytes 20 to 23

    assert [later > earlier for earlier, later in pairwise(heights)] == [True, True]
