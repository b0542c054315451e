"""A hospital tells of its machine what its policy allows, and takes at most the study's own steps, or a share."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Message, RecordDict

from fl_client.journal import Journal
from fl_contract.array_record import from_array_record
from fl_contract.errors import RefusalCode
from fl_contract.messages import ARRAYS, CONFIG, PLAN, Capacity, SitePlan
from fl_contract.study_file import Scalar

Ask = Callable[..., Message]

PLAIN: dict[str, Scalar] = {"privacy.mechanism": "none", "training.local-steps": 8}
BALANCED: dict[str, Scalar] = {**PLAIN, "federation.balance": True}


@pytest.mark.parametrize(
    ("share", "balance", "is_told"), [("true", True, True), ("true", False, False), ("false", True, False)]
)
def test_cores_and_gpu_are_told_only_if_the_policy_allows_it_and_the_study_needs_it(
    ask: Ask, write_site_file: Callable[..., Path], share: str, balance: bool, is_told: bool
) -> None:
    path = write_site_file(require_privacy="false", unit='"record"', share_capacity=share)
    overrides = BALANCED if balance else PLAIN

    plan = SitePlan.from_message(ask(PLAN, site="st-anna", node_config={"site-file": str(path)}, overrides=overrides))

    told = Capacity(num_cores=torch.get_num_threads(), has_gpu=torch.cuda.is_available())
    assert plan.capacity == (told if is_told else None)
    left = Journal(path.parent).read()[-1].fields["fields"]["config"]
    assert ("num-cores" in left, "has-gpu" in left) == (is_told, is_told)


def test_nothing_is_told_unless_the_policy_says_so(ask: Ask, write_site_file: Callable[..., Path]) -> None:
    path = write_site_file(require_privacy="false", unit='"record"')

    plan = SitePlan.from_message(ask(PLAN, site="st-anna", node_config={"site-file": str(path)}, overrides=BALANCED))

    assert plan.capacity is None


def _asking(steps: object) -> Callable[[RecordDict], None]:
    def edit(content: RecordDict) -> None:
        content.config_records[CONFIG]["local-steps"] = steps  # type: ignore[assignment]

    return edit


@pytest.mark.parametrize("steps", [2, 5, 8])
def test_a_hospital_takes_the_steps_that_it_is_asked_for(ask: Ask, train: Callable[..., Message], steps: int) -> None:
    fixed = {**PLAIN, "training.local-steps": steps}
    ask(PLAN, overrides=BALANCED)
    ask(PLAN, overrides=fixed, run="run-2")

    asked = train(1, overrides=BALANCED, edit=_asking(steps))
    own = train(1, overrides=fixed, run="run-2")

    ours, theirs = (from_array_record(reply.content.array_records[ARRAYS]) for reply in (asked, own))
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name])


@pytest.mark.parametrize("steps", [-1, 0, 1, 9, 10**9, 4.0, True, "8", b"8"])
def test_more_steps_than_the_study_s_or_less_than_a_quarter_are_refused(
    ask: Ask, train: Callable[..., Message], steps: object
) -> None:
    ask(PLAN, overrides=BALANCED)

    reply = train(1, overrides=BALANCED, edit=_asking(steps))

    assert RefusalCode(reply.error.code) == RefusalCode.INVALID_REQUEST


@pytest.mark.parametrize("overrides", [PLAIN, {}], ids=["plain", "private"])
def test_a_study_that_does_not_balance_has_its_own_steps_only(
    ask: Ask, train: Callable[..., Message], overrides: dict[str, Scalar]
) -> None:
    ask(PLAN, overrides=overrides)

    reply = train(1, overrides=overrides, edit=_asking(4))

    assert RefusalCode(reply.error.code) == RefusalCode.INVALID_REQUEST


def test_without_a_number_a_balanced_round_takes_the_study_s_own(ask: Ask, train: Callable[..., Message]) -> None:
    ask(PLAN, overrides=BALANCED)

    replies = [train(1, overrides=BALANCED), train(1, overrides=BALANCED, edit=_asking(8))]

    ours, theirs = (from_array_record(reply.content.array_records[ARRAYS]) for reply in replies)
    assert all((array == theirs[name]).all() for name, array in ours.items())
