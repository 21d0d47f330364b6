"""Scalar expressions and names of a program as C."""

import re
from collections.abc import Iterable, Mapping

from shoestring.kernels.tile.expressions import Binary, Const, Expr, Var

_KEYWORDS = [
    "auto",
    "break",
    "case",
    "char",
    "const",
    "continue",
    "default",
    "do",
    "double",
    "else",
    "enum",
    "extern",
    "float",
    "for",
    "goto",
    "if",
    "inline",
    "int",
    "long",
    "register",
    "restrict",
    "return",
    "short",
    "signed",
    "sizeof",
    "static",
    "struct",
    "switch",
    "typedef",
    "union",
    "unsigned",
    "void",
    "volatile",
    "while",
    "asm",
    "typeof",
    "threads",
    "shared",
    "failure",
    "code",
    "values",
    "values_of",
    "magnitude",
    "least",
    "most",
    "clamped",
    "greater",
    "lesser",
    "main",
    "NAN",
    "INFINITY",
    "LANES",
    "MAP",
    "U",
    "WRAP",
    "EACH_LANE",
    "get_field",
    "put_field",
    "read_code",
    "write_code",
    "round_saturated",
    "round_narrow",
    "float_bits",
    "bits_float",
    "float_to_brain",
    "half_to_float",
    "float_to_half",
    "wait_for",
    "errno",
    "unix",
    "linux",
]
_OURS = re.compile(r"(v[fim]_|_|decode_|half_way_|stream_|grid_|m?m(256|512)|str|mem|is|to|fe)")


def c_names(names: Iterable[str]) -> Mapping[str, str]:
    """A C name for each name of a program: the same, with `_` behind it where C or the renderer uses it."""
    found: dict[str, str] = {}
    taken = set(_KEYWORDS)
    for name in names:
        new = name
        while new in taken or _OURS.match(new):
            new = f"t_{new}" if _OURS.match(new) else f"{new}_"
        taken.add(new)
        found[name] = new
    return found


_C_OPERATORS = {"//": "/", "and": "&&", "or": "||"}


def c_of(expr: Expr, names: Mapping[str, str]) -> str:
    """The expression in C, of type int64_t."""
    if isinstance(expr, Const):
        return str(expr.value)
    if isinstance(expr, Var):
        return names[expr.name]
    assert isinstance(expr, Binary)
    left, right = c_of(expr.left, names), c_of(expr.right, names)
    if expr.op in ("min", "max"):
        return f"{'least' if expr.op == 'min' else 'most'}({left}, {right})"
    return f"({left} {_C_OPERATORS.get(expr.op, expr.op)} {right})"


def substitute(expr: Expr, name: str, ahead: int) -> Expr:
    """The expression with `ahead` added to the variable called `name`."""
    if isinstance(expr, Var):
        return expr + ahead if expr.name == name else expr
    if isinstance(expr, Binary):
        return Binary(expr.op, substitute(expr.left, name, ahead), substitute(expr.right, name, ahead))
    return expr
