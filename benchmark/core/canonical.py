"""The one JSON text of plain data, for keys and records."""

import json
from typing import Any


def canonical(value: Any) -> str:
    """Return the one JSON text of a plain value. Raises ValueError on NaN and TypeError on anything not plain.

    >>> canonical({"b": (1, 2.0), "a": None})
    '{"a":null,"b":[1,2.0]}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
