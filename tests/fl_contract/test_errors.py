"""A refusal carries a code and our own sentence; the tree of exceptions is as it is drawn."""

import pytest

from fl_contract import errors
from fl_contract.errors import ConsiliumError, QuorumError, RefusalCode, RefusalError, RunError, SettingError


@pytest.mark.parametrize("code", list(RefusalCode))
def test_every_code_has_a_label_and_a_sentence_of_its_own(code: RefusalCode) -> None:
    assert code >= 100  # below are Flower's
    assert code.label == code.label.lower().replace("_", "-")
    assert code.sentence.endswith(".")
    assert len({other.sentence for other in RefusalCode}) == len(RefusalCode)


def test_every_exception_is_in_the_drawn_tree_and_ours() -> None:
    defined = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]

    assert all(issubclass(kind, ConsiliumError) for kind in defined)
    assert all(f" {kind.__name__}" in str(errors.__doc__) for kind in defined)
    assert issubclass(QuorumError, RunError)
    assert issubclass(SettingError, ValueError)


def test_a_refusal_keeps_its_detail_for_the_sites_own_log() -> None:
    refusal = RefusalError(RefusalCode.POLICY, "delta too large")

    assert (refusal.code, refusal.detail) == (RefusalCode.POLICY, "delta too large")
    assert str(refusal) == "policy: delta too large"
