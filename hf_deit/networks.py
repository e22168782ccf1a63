"""Network factories under their public names, for `--teacher` and `--network`: `hf_deit.networks:efficientnet_lite0`.

Saved teachers (teacher.json) hold these names. The code is in distillation/factories.py.
"""

from .distillation.factories import efficientnet_lite0

__all__ = ["efficientnet_lite0"]
