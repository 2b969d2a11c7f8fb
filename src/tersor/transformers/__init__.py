# SPDX-License-Identifier: Apache-2.0
"""Load, compress and save models of Hugging Face's transformers: importing this registers tersor.

``AutoModel.from_pretrained("small")`` then loads a folder that ``tersor compress`` wrote. The
package transformers calls plug-ins only after they are imported, so programs need the line
``import tersor.transformers``. ``import tersor`` alone does not import transformers, which takes
seconds.
"""

from tersor.errors import MissingExtraError

try:
    import transformers as _transformers
except ImportError:
    raise MissingExtraError(
        "tersor.transformers needs the package transformers: pip install 'tersor[transformers]'"
    ) from None

if int(_transformers.__version__.partition(".")[0]) < 5:
    raise MissingExtraError(
        f"tersor.transformers needs transformers 5.24 or newer, this is {_transformers.__version__}"
        ": pip install 'tersor[transformers]'"
    )

from tersor.transformers.config import TersorConfig
from tersor.transformers.generated import generated
from tersor.transformers.quantizer import TersorQuantizer, register

__all__ = ["TersorConfig", "TersorQuantizer", "generated"]

register()
