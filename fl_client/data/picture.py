"""PNG and JPEG files: the only place that decodes them."""

import struct
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fl_client.data.image_stack import ImageEntry
from fl_contract.errors import RefusalCode, RefusalError

FORMATS = ("PNG", "JPEG")
MODES = ("L", "I;16", "RGB")
"""Grey of 8 or 16 bits, and colour, as Pillow calls them."""


def decode_picture(entry: ImageEntry) -> NDArray[Any]:
    """Pixel values as they are in the file, turned the way the camera was held.

    Returns:
        [height, width] from 0 to 255 or 65535 for grey, [height, width, 3] from 0 to 255 for colour.

    Raises:
        OSError: The file cannot be opened.
        RefusalError: INVALID_DATA: it is damaged, no PNG or JPEG, of more pixels than Pillow takes for safe
            (``Image.MAX_IMAGE_PIXELS``), or has a palette or transparency.
    """
    with entry.path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(file, formats=FORMATS) as image:
                turned = ImageOps.exif_transpose(image)
                mode, pixels = turned.mode, np.asarray(turned)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise _refusal(f"more pixels than {Image.MAX_IMAGE_PIXELS}; expected a smaller image") from error
        except (OSError, SyntaxError, ValueError, KeyError, IndexError, struct.error) as error:
            raise _refusal("damaged, or no PNG or JPEG") from error
    if mode not in MODES:
        raise _refusal(f"colour mode {mode}; expected grey (8 or 16 bits) or RGB, without palette and transparency")
    return pixels


def _refusal(detail: str) -> RefusalError:
    return RefusalError(RefusalCode.INVALID_DATA, detail)
