"""A griffe extension: a dataclass field's documentation is the `metadata["help"]` that the command line shows too.

Private base classes are not shown.
"""

import ast
from typing import Any

import griffe


class FieldHelp(griffe.Extension):
    """Extension that takes the docstring of a dataclass field from its metadata, and leaves out private base classes."""

    def on_class_instance(self, *, cls: griffe.Class, **_: Any) -> None:
        """Leave out the private base classes of a class."""
        cls.bases = [base for base in cls.bases if not str(base).rpartition(".")[2].startswith("_")]

    def on_attribute_instance(self, *, node: Any, attr: griffe.Attribute, **_: Any) -> None:
        """Set the docstring of an attribute that is `field(..., metadata={"help": "..."})`."""
        if attr.docstring is not None or not isinstance(node, ast.AnnAssign) or not isinstance(node.value, ast.Call):
            return
        for keyword in node.value.keywords:
            if keyword.arg == "metadata" and isinstance(keyword.value, ast.Dict):
                help_text = _help(keyword.value)
                if help_text is not None:
                    attr.docstring = griffe.Docstring(help_text, parent=attr, parser="google")
                    attr.value = next(
                        (ast.unparse(other.value) for other in node.value.keywords if other.arg == "default"), None
                    )


def _help(metadata: ast.Dict) -> str | None:
    for key, value in zip(metadata.keys, metadata.values, strict=True):
        if isinstance(key, ast.Constant) and key.value == "help":
            # What an f-string computes is not known here: "…" stands for it.
            parts = value.values if isinstance(value, ast.JoinedStr) else [value]
            return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in parts)
    return None
