"""The text form of an item with settings, `pgd(steps=100)`, and of a stack, `a+b(k=2)`. Imports no torch."""

import ast
import re
from dataclasses import dataclass
from typing import Any

from firstline.benchmark.core.errors import FirstlineError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*")
_MARK = re.compile(
    r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[()+]"""
)  # a whole string, or a sign outside strings


@dataclass(frozen=True)
class Ref:
    """A name and the settings that differ from its defaults."""

    name: str
    settings: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Ref":
        """Return the reference that text names.

        >>> Ref.parse("pgd(steps=100, stride=2/255)").settings
        (('steps', 100), ('stride', 0.00784313725490196))
        """
        text = text.strip()
        match = _NAME.match(text)
        rest = text[match.end() :] if match else text
        if not match or (rest and not (rest.startswith("(") and rest.endswith(")"))):
            raise FirstlineError(f"cannot read {text!r}; write a name, or name(setting=value, ...)")
        try:
            call = ast.parse(f"f{rest or '()'}", mode="eval").body
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
                raise ValueError(text)
            names = [k.arg for k in call.keywords]
            if None in names or len(set(names)) < len(names):
                raise ValueError(text)
            settings = {str(k.arg): _value(k.value) for k in call.keywords}
        except (SyntaxError, ValueError, TypeError, OverflowError, RecursionError, MemoryError):
            raise FirstlineError(
                f"cannot read the settings in {text!r}; write name(setting=value, ...), each setting once"
            ) from None
        return cls(match.group(), tuple(sorted(settings.items())))

    def __str__(self) -> str:
        inside = ", ".join(f"{name}={value!r}" for name, value in self.settings)
        return f"{self.name}({inside})" if inside else self.name


def parse_stack(text: str) -> tuple[Ref, ...]:
    """Return the layers of a defense stack, outermost last.

    >>> [str(layer) for layer in parse_stack("adversarial-training(steps=3)+input-noise")]
    ['adversarial-training(steps=3)', 'input-noise']
    """
    layers, depth, start = [], 0, 0
    for mark in _MARK.finditer(text):
        depth += (mark.group() == "(") - (mark.group() == ")")
        if mark.group() == "+" and depth == 0:
            layers.append(text[start : mark.start()])
            start = mark.end()
    return tuple(Ref.parse(layer) for layer in [*layers, text[start:]])


def write_stack(layers: tuple[Ref, ...]) -> str:
    """Return the text form of a stack."""
    return "+".join(str(layer) for layer in layers)


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        top, bottom = _value(node.left), _value(node.right)
        if not bottom:
            raise ValueError("division by zero")
        return top / bottom
    return ast.literal_eval(node)
