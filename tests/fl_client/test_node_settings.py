"""A hospital that says nothing of its processes gets the defaults; what would not work is refused with its rule."""

import pytest

from fl_client.node_settings import NodeSettings
from fl_contract.errors import SettingError


def test_a_hospital_that_says_nothing_allows_an_hour_and_uses_no_proxy() -> None:
    settings = NodeSettings.parse({}, origin="site.toml")

    assert (settings.task_timeout_seconds, settings.proxy, settings.runtime_port) == (3600, None, 9094)


@pytest.mark.parametrize("address", ["http://proxy.example.org:3128", "https://10.0.0.9:8080", "http://[::1]:3128"])
def test_a_proxy_is_an_address(address: str) -> None:
    assert NodeSettings.parse({"proxy": address}, origin="site.toml").proxy == address


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("task-timeout-seconds", 0, "task-timeout-seconds=0; expected at least 1"),
        ("task-timeout-seconds", "60", "expected a whole number"),
        ("runtime-port", 70000, "expected at most 65535"),
        ("proxy", "proxy.example.org:3128", "expected http://host:port"),
        ("proxy", "socks5://proxy.example.org", "expected http://host:port"),
        ("proxy", "http://user:hidden@proxy.example.org", "no user and no password"),
        ("port", 9094, "is not a known key"),
    ],
)
def test_a_broken_rule_is_named(key: str, value: object, rule: str) -> None:
    with pytest.raises(SettingError, match=r"^site\.toml: ") as caught:
        NodeSettings.parse({key: value}, origin="site.toml")

    assert rule in str(caught.value)
    assert "hidden" not in str(caught.value)
