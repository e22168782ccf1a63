"""Tests of the checks of labels in batches, and of weights for images that are not RGB."""

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from hf_deit.data.views import collate
from hf_deit.distillation.teacher import Teacher
from hf_deit.errors import DataError, UserError
from hf_deit.losses import ProblemType
from hf_deit.models.deit_imports import nothing  # noqa: F401
