"""Every exception of Consilium, and the only codes with which a hospital may say no.

    ConsiliumError
    ├── SettingError            a study, site or run setting breaks a rule          (also a ValueError)
    ├── RefusalError            a hospital says no; carries a RefusalCode, nothing else
    ├── DisclosureError         something that was not agreed tried to leave a hospital
    ├── JournalError            a hospital's journal was changed, cut, or put back from an old copy
    ├── MessageError            a message misses a field or holds one of the wrong type
    ├── RunError                a run cannot go on
    │   ├── QuorumError         too few hospitals gave a usable reply
    │   └── CheckpointError     a checkpoint is absent, damaged or of another run
    └── ReplyError              a reply is not usable: shape, type, value            (quarantines that hospital)

The `privacy` package has a tree of its own (`privacy/errors.py`), because it knows nothing of ours.
"""

from enum import IntEnum


class RefusalCode(IntEnum):
    """Why a hospital did not do what was asked; travels as the code of a Flower ``Error``.

    Codes below 100 are Flower's own.
    """

    INTERNAL = 100
    BUDGET_EXHAUSTED = 101
    POLICY = 102
    INVALID_DATA = 103
    TOO_FEW_PATIENTS = 104
    ONE_CLASS = 105
    MODEL_NOT_PRIVATE = 106
    STUDY_MISMATCH = 107
    INVALID_REQUEST = 108
    DISCLOSURE = 109
    PRIVACY_SETTING = 110
    NO_AGREEMENT = 111
    TIME_LIMIT = 112
    DISK_FULL = 113

    @property
    def label(self) -> str:
        """The code in words, as records and tables print it.

        >>> RefusalCode.BUDGET_EXHAUSTED.label
        'budget-exhausted'
        """
        return self.name.lower().replace("_", "-")

    @property
    def sentence(self) -> str:
        """Our own sentence, the only text of a refusal that leaves a hospital."""
        return _SENTENCES[self]


_SENTENCES = {
    RefusalCode.INTERNAL: "The hospital could not finish the request; its own log says why.",
    RefusalCode.BUDGET_EXHAUSTED: "The round would exceed the hospital's privacy budget.",
    RefusalCode.POLICY: "The hospital's policy does not allow what the study asks for.",
    RefusalCode.INVALID_DATA: "The hospital's data break the study's schema; its own log names the rule.",
    RefusalCode.TOO_FEW_PATIENTS: "The hospital has too few patients for this study.",
    RefusalCode.ONE_CLASS: "The hospital's patients all carry the same label.",
    RefusalCode.MODEL_NOT_PRIVATE: "The study's model cannot be trained with differential privacy.",
    RefusalCode.STUDY_MISMATCH: "The hospital and the coordinator do not hold the same study.",
    RefusalCode.INVALID_REQUEST: "The request names an unknown site, round or run, or misses a field.",
    RefusalCode.PRIVACY_SETTING: "The study's privacy settings break a rule; the hospital's own log names it.",
    RefusalCode.NO_AGREEMENT: "The hospital has not agreed to this run, or not to this request of it.",
    RefusalCode.DISCLOSURE: "The hospital's disclosure gate stopped the reply.",
    RefusalCode.TIME_LIMIT: "The request took longer than the hospital allows.",
    RefusalCode.DISK_FULL: "The hospital's disk is full; it takes part again when there is room.",
}


class ConsiliumError(Exception):
    """Base of all our exceptions."""


class SettingError(ConsiliumError, ValueError):
    """A setting is unknown, missing, of the wrong type or outside its range."""


class RefusalError(ConsiliumError):
    """A hospital says no.

    Attributes:
        code: What leaves the hospital.
        detail: For the hospital's own log; never leaves it.
    """

    def __init__(self, code: RefusalCode, detail: str) -> None:
        super().__init__(f"{code.label}: {detail}")
        self.code = code
        self.detail = detail


class DisclosureError(ConsiliumError):
    """A field, array or type that was not agreed tried to leave a hospital."""


class JournalError(ConsiliumError):
    """A hospital's journal is not the one that was written: changed, cut, or put back from an old copy."""


class MessageError(ConsiliumError):
    """A message misses a field, or holds one of the wrong type."""


class RunError(ConsiliumError):
    """A run cannot go on."""


class QuorumError(RunError):
    """Too few hospitals gave a usable reply in a round."""


class CheckpointError(RunError):
    """A checkpoint is absent, damaged, or belongs to another run."""


class ReplyError(ConsiliumError):
    """A reply is not usable: missing array, wrong shape or type, NaN, infinity, non-positive weight."""
