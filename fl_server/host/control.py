"""The only place that asks the running SuperLink for something: Flower's own client, and the lead's signature."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fl_contract.errors import RunError, SettingError
from fl_server.host.control_signature import sign
from fl_server.host.federation import FederationFolder
from fl_server.host.lead import read_lead_key

if TYPE_CHECKING:
    from flwr.supercore.control import ControlHttpClient
    from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext

LOOPBACK = "127.0.0.1"
TIMEOUT_SECONDS = 30.0


@contextmanager
def open_control(folder: FederationFolder, lead_key: Path | None = None) -> "Iterator[ControlHttpClient]":
    """Flower's client of the Control API, on the operator's port, with each request signed.

    What goes wrong in it is raised as one of ours.

    Raises:
        SettingError: The lead's key or the authority's certificate cannot be read.
        RunError: The SuperLink is not running, or refuses.
    """
    from flwr.supercore.control import ControlHttpClient
    from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

    settings = folder.settings()
    address = f"{LOOPBACK}:{settings.operator_port}"
    key = read_lead_key(folder, lead_key)
    client = ControlHttpClient(
        f"https://{address}",
        interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI"), _Signing(key)],
        verify=trust(folder),
        timeout=TIMEOUT_SECONDS,
    )
    # httpx would send even loopback through a proxy of the environment.
    client._client.close()
    client._client = httpx.Client(verify=trust(folder), timeout=TIMEOUT_SECONDS, trust_env=False)
    try:
        with client:
            yield client
    except httpx.HTTPStatusError as error:
        raise RunError(_refusal(error.response)) from error
    except httpx.HTTPError as error:
        raise RunError(
            f"{address}: the coordinator does not answer ({type(error).__name__}); start it: "
            f"fl-server start --folder {folder.root}"
        ) from error


def trust(folder: FederationFolder) -> ssl.SSLContext:
    """Trust in the federation's own authority alone.

    Raises:
        SettingError: Its certificate cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(folder.authority_certificate)
    except (OSError, ssl.SSLError) as error:
        raise SettingError(f"{folder.authority_certificate}: cannot be used; run fl-server init first") from error
    return context


class _Signing:
    """Signs each request as it is sent; a repeated one gets a signature of its own."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    def intercept(self, context: "ProtobufRequestContext", call_next: "ProtobufCall") -> httpx.Response:
        """Add the headers of the signature."""
        request = context.request
        path = request.url.raw_path.decode("ascii")
        request.headers.update(sign(self._key, method=request.method, path=path, body=request.read()))
        return call_next(context)


def _refusal(response: httpx.Response) -> str:
    """What the SuperLink said, in its words."""
    from flwr.supercore.error import FlowerError

    text = response.text.strip()
    if (error := FlowerError.from_json(text)) is not None:
        details = error.public_details or error.message
        return f"the SuperLink refuses (Flower's code {int(error.code)}): {details}"
    return f"the SuperLink refuses ({response.status_code}): {text[:500]}"
