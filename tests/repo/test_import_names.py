"""`strategies` and `privacy` are generic names: nothing else that is installed may claim them, or ours."""

from importlib.metadata import packages_distributions

import pytest


@pytest.mark.parametrize("package", ["fl_contract", "privacy", "strategies", "fl_host", "fl_client", "fl_server"])
def test_no_other_distribution_claims_our_import_name(package: str) -> None:
    claimed_by = set(packages_distributions().get(package, []))

    assert claimed_by <= {"consilium"}
