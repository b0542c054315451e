"""The only place that splits validation patients, on whom nothing is trained, from a hospital's training patients."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from fl_client.data.records import Records
from fl_client.site import Site
from fl_contract.errors import RefusalCode, RefusalError
from fl_contract.strategy_settings import FineTuningSettings


def fitting_records(site: Site, records: Records) -> Records:
    """The training records on which a model is trained: all, but for an algorithm that needs validation patients.

    Raises:
        RefusalError: TOO_FEW_PATIENTS: there are not two patients to split.
    """
    share = _validation_share(site)
    return records if share is None else records.take(np.flatnonzero(~_is_validation(site, records, share)))


def validation_records(site: Site, records: Records) -> Records:
    """The training records by which the hospital chooses its model; none where the algorithm chooses nothing.

    Raises:
        RefusalError: TOO_FEW_PATIENTS: there are not two patients to split.
    """
    share = _validation_share(site)
    is_chosen = np.zeros(len(records), bool) if share is None else _is_validation(site, records, share)
    return records.take(np.flatnonzero(is_chosen))


def _validation_share(site: Site) -> float | None:
    strategy = site.study.strategy
    return strategy.validation_share if site.study.is_personal and isinstance(strategy, FineTuningSettings) else None


def _is_validation(site: Site, records: Records, share: float) -> NDArray[np.bool_]:
    """[N] whether a record is of a validation patient; a record without a patient is one of its own.

    Patients are in the order of a hash of their names, so that the split does not depend on the records' order.
    """
    whose = np.arange(len(records)) if records.patients is None else records.patients
    names = np.array([str(each) for each in whose])
    patients = sorted(set(names.tolist()), key=lambda name: _digest(site, name))
    if len(patients) < 2:
        raise RefusalError(
            RefusalCode.TOO_FEW_PATIENTS,
            f"training records of {len(patients)} patients; expected two or more, to choose a model by some of them",
        )
    number = min(max(round(share * len(patients)), 1), len(patients) - 1)
    return np.isin(names, patients[:number])


def _digest(site: Site, patient: str) -> bytes:
    return hashlib.sha256(f"{site.study.seed}/{site.name}/validation/{patient}".encode()).digest()
