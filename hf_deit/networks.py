"""Former module of the network factories, now in distillation/factories.py.

Saved teachers (teacher.json) and existing command lines still name the factories of this module.
"""

from .distillation.factories import efficientnet_lite0

__all__ = ["efficientnet_lite0"]
