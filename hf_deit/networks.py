"""The old place of `distillation.factories`: saved teachers (teacher.json) and command lines name factories here."""

from .distillation.factories import efficientnet_lite0

__all__ = ["efficientnet_lite0"]
