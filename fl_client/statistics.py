"""The only place that adds up a hospital's features for the coordinator, before round 1."""

import math

from fl_client.inputs import training_examples
from fl_client.site import Site
from fl_contract.errors import RefusalCode, RefusalError
from fl_contract.statistics import FeatureStatistics

CHUNK_VALUES = 2**22
"""Added up at a time, about, so that no second copy of all records is made."""


def check_statistics_allowed(site: Site) -> None:
    """Refuse a study that needs statistics where the hospital's policy gives none.

    Raises:
        RefusalError: POLICY.
    """
    if site.study.needs_statistics and site.settings.policy.statistics == "none":
        raise RefusalError(
            RefusalCode.POLICY,
            "policy.statistics='none'; the study standardises or fills in by statistics of all hospitals' patients, "
            "which leave without noise; allow that by policy.statistics = 'exact', or ask for a study without",
        )


def add_up_features(site: Site) -> FeatureStatistics:
    """The statistics of the hospital's training records, without small counts; the same at every call.

    Every pixel of an image and every step of a series is a value; the policy's least count is of records.

    Raises:
        RefusalError: INVALID_REQUEST: the study needs none. POLICY: the hospital gives none.
    """
    if not site.study.needs_statistics:
        raise RefusalError(RefusalCode.INVALID_REQUEST, "statistics were asked for; the study needs none")
    check_statistics_allowed(site)
    schema = site.study.data_schema
    inputs = training_examples(site, site.load_records().train).inputs
    chunks = inputs.split(max(1, CHUNK_VALUES // math.prod(schema.input_shape)))
    parts = (chunk.movedim(1, -1).flatten(0, -2).numpy() for chunk in chunks)
    exact = FeatureStatistics.merge(FeatureStatistics.of(part, schema.columns) for part in parts)
    values_per_record = math.prod(schema.input_shape[1:])
    return exact.suppress(schema.columns, min_count=site.settings.policy.min_count * values_per_record)
