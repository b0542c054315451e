"""Each study that ships can be told in words; one that the installed release does not know is said to be so."""

import pytest

from fl_client.node.study_words import study_in_words
from fl_contract.study_file import STUDIES, load_study


@pytest.mark.parametrize("name", sorted(path.stem for path in STUDIES.glob("*.toml")))
def test_every_study_is_told(name: str) -> None:
    study = load_study(name)

    told = "\n".join(study_in_words(name, (STUDIES / f"{name}.toml").read_bytes()))

    assert f"{name}: {study.title}" in told
    assert f"at most {study.num_rounds} rounds" in told
    assert ("NO differential privacy" in told) is not study.is_private
    if study.is_private:
        assert f"ε at most {study.privacy.epsilon:g} at δ {study.privacy.delta:g} per {study.privacy.unit}" in told


def test_features_and_what_leaves_are_named() -> None:
    told = "\n".join(study_in_words("heart-disease", (STUDIES / "heart-disease.toml").read_bytes()))

    assert "age" in told
    assert "leaves    each round the model as trained here, with noise" in told


@pytest.mark.parametrize("toml", [b"\xff", b"[", b'name = "x"', b'name = "x"\nunheard-of = 1\n'])
def test_a_study_that_cannot_be_read_is_said_to_be_so(toml: bytes) -> None:
    first, reason = study_in_words("x", toml)

    assert "cannot read it" in first
    assert reason
