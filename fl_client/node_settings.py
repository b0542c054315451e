"""Settings of a hospital's processes: table ``[node]`` of ``site.toml``."""

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from fl_contract.settings import Settings


def _check_proxy(value: str) -> str:
    address = urlsplit(value)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise ValueError("expected http://host:port or https://host:port")
    if address.username is not None or address.password is not None:
        raise ValueError("expected no user and no password in it; let the proxy know this host by its address")
    return value


class NodeSettings(Settings):
    """How the hospital's processes run.

    Attributes:
        task_timeout_seconds: Longest that one request may take; one that takes longer is ended and refused.
        proxy: By which the node reaches the coordinator, ``http://host:port``; none if not set.
        runtime_port: On 127.0.0.1, where the processes of this node talk to each other.
    """

    task_timeout_seconds: int = Field(default=3600, ge=1)
    proxy: Annotated[str, AfterValidator(_check_proxy)] | None = None
    runtime_port: int = Field(default=9094, ge=1, le=65535)
