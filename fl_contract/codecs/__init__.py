"""The registry of codecs: ways to write an update in fewer bytes, one a file, each a settings type that builds it."""

from typing import Annotated, Literal

from pydantic import Field

from fl_contract.codecs.bfloat16 import Bfloat16Settings
from fl_contract.codecs.float16 import Float16Settings
from fl_contract.codecs.int8 import Int8Settings
from fl_contract.codecs.power_sgd import PowerSgdSettings
from fl_contract.codecs.rotation import RotationSettings
from fl_contract.codecs.top_k import TopKSettings
from fl_contract.settings import Settings


class NoCodecSettings(Settings):
    """Replies hold the trained model itself."""

    codec: Literal["none"] = "none"


CommunicationSettings = Annotated[
    NoCodecSettings
    | Float16Settings
    | Bfloat16Settings
    | Int8Settings
    | RotationSettings
    | TopKSettings
    | PowerSgdSettings,
    Field(discriminator="codec"),
]
