"""The only place that adds up a hospital's features for the coordinator, before round 1."""

from fl_client.inputs import training_examples
from fl_client.site import Site
from fl_contract.errors import RefusalCode, RefusalError
from fl_contract.statistics import FeatureSums


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


def add_up_features(site: Site) -> FeatureSums:
    """The sums over the hospital's training records; the same at every call.

    Raises:
        RefusalError: INVALID_REQUEST: the study needs none. POLICY: the hospital gives none.
    """
    if not site.study.needs_statistics:
        raise RefusalError(RefusalCode.INVALID_REQUEST, "statistics were asked for; the study needs none")
    check_statistics_allowed(site)
    inputs = training_examples(site, site.load_records().train).inputs.numpy()
    return FeatureSums.of(inputs, min_count=site.settings.policy.min_count)
