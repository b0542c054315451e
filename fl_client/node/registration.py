"""The only place that asks a coordinator whether it knows this node's key, without taking part.

Flower activates a node that asks to be, unless it is online already: a doctor must not. A request to be activated with
a heartbeat of 0 s is refused either way, before anything is changed: with one code where the key is registered, with
another where it is not.
"""

import json
from base64 import b64encode

from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.date import now
from flwr.supercore.error import ApiErrorCode
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from fl_client.node.node_folder import NodeFolder
from fl_client.node.node_keys import read_key
from fl_host.checks import Finding, failed, ok
from fl_host.endpoint import Answer, Endpoint

UNAUTHORIZED = 401


def check_registered(endpoint: Endpoint, folder: NodeFolder) -> Finding:
    """Whether the coordinator would let this node in."""
    key = read_key(folder.key)
    public = public_key_to_bytes(key.public_key())
    answer = endpoint.ask(
        folder.authority,
        "/v1/fleet/activate-node",
        method="POST",
        headers=_signed_headers(key, public),
        body=ActivateNodeRequest(public_key=public, heartbeat_interval=0.0).SerializeToString(),
    )
    return judge(answer)


def judge(answer: Answer) -> Finding:
    """What the coordinator's refusal says."""
    code = _code(answer.body)
    if code == ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL:
        return ok("the coordinator knows this node's key")
    if code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
        return failed(
            "the coordinator does not know this node's key: it was not admitted yet, or was expelled",
            "send the request of fl-client enroll to the coordinator (fl-server admit); after an expulsion, ask with "
            "fl-client enroll --new-key",
        )
    if answer.status == UNAUTHORIZED:
        return failed("the coordinator refuses this node's signature", "compare both hosts' clocks to the second")
    return failed(
        f"the coordinator answered {answer.status}, error code {code}",
        "ask whether another version of Consilium runs there, or whether something else answers on this port",
    )


def _signed_headers(key: ec.EllipticCurvePrivateKey, public: bytes) -> dict[str, str]:
    time = now().isoformat()
    return {
        "Content-Type": PROTOBUF_MEDIA_TYPE,
        "Accept": PROTOBUF_MEDIA_TYPE,
        FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(public).decode(),
        TIMESTAMP_HEADER: time,
        FLEET_HTTP_SIGNATURE_HEADER: b64encode(sign_message(key, time.encode())).decode(),
    }


def _code(body: bytes) -> int | None:
    try:
        told = json.loads(body)
    except ValueError:
        return None
    code = told.get("code") if isinstance(told, dict) else None
    return code if isinstance(code, int) else None
