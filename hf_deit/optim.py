"""Which parameters decay.

Paper: arXiv:2012.12877, Table 9 (weight decay 0.05), and the official code's `no_weight_decay`.
"""

from torch import nn

_NEVER = ("cls_token", "position_embeddings")


def decay_parameter_names(model: nn.Module, distillation_token_decay: bool = True) -> list[str]:
    """Gives the names of the parameters that weight decay applies to.

    None on biases (a Swin's table of relative position biases among them), norms and LayerScale (all of them vectors), the
    class token and the positions.

    Args:
        model: The student.
        distillation_token_decay: As the official code does; False treats it as the class token.
    """
    never = _NEVER if distillation_token_decay else (*_NEVER, "distillation_token")
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1 and name.rpartition(".")[2] not in never and "bias" not in name.rpartition(".")[2]
    ]
