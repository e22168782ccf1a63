"""The field `class_names`: a file that gives names to the classes of data.

models/label_names.py reads the file. `with_class_names` renames the classes of loaded data, whose order stays the same.
"""

import dataclasses
import hashlib
from typing import TypeVar

from ..data.sources import Source
from ..data.tables import TableReader
from ..losses import ProblemType
from ..models.label_names import ClassNames

_Data = TypeVar("_Data", Source, TableReader)


def with_class_names(data: _Data, names: ClassNames | None) -> _Data:
    """Return the data with the class names of a file.

    Args:
        data: Images with labels, or the reader of a stream, which is changed in place.
        names: Names of a file. None keeps the names of the data.

    Raises:
        UserError: The file does not name a class of the data.
    """
    if names is None:
        return data
    renamed = names.rename(data.class_names, data.problem_type == ProblemType.MULTI_LABEL)
    if isinstance(data, TableReader):
        data.rename_classes(renamed)
        return data
    if renamed == data.class_names:
        return data
    digest = hashlib.sha256("\n".join([data.fingerprint, *renamed]).encode()).hexdigest()
    return dataclasses.replace(data, class_names=renamed, fingerprint=digest)
