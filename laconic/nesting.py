"""Reads a nesting from text: ``diloco(everyone(error_feedback(topk(0.01))), every=500)``.

Recipes and the command line name functions and arguments; this turns the text into the call. Only the public names of
the rooms can be named, only constants passed.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, get_args, get_type_hints

from laconic.errors import ConfigError, LaconicError, unknown

WORDS = {"true": True, "false": False, "none": None}  # as recipes spell them
UNREADABLE = (SyntaxError, ValueError, TypeError, MemoryError, RecursionError)  # what Python says of odd text


@cache
def names() -> dict[str, Callable[..., Any]]:
    """Every function that a nesting may name."""
    from laconic import aggregate, compress, exchange, sync

    return {
        name: function
        for room in (compress, aggregate, exchange, sync)
        for name in room.__all__
        if inspect.isfunction(function := getattr(room, name))
    }


def read(text: str) -> Any:
    """The value of a nesting; a name alone is called with its defaults.

    Raises: ConfigError for text that is no nesting, an unknown name (with the nearest), or arguments that do not fit.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except UNREADABLE as error:
        why = getattr(error, "msg", None) or error or type(error).__name__
        raise ConfigError(
            f"{text[:200]!r} is not a nesting ({why}); write it like error_feedback(topk(0.01))"
        ) from None
    return _value(tree, text)


def chain_of(parts: str | Sequence[str]) -> Any:
    """A compressor from one nesting, or from a list of them, which is a chain."""
    from laconic.compress import Compressor, chain

    texts = [parts] if isinstance(parts, str) else list(parts)
    if not texts:
        raise ConfigError(
            'compress: the list is empty; name at least one compressor, or leave it out ("identity" is none)'
        )
    values = [read(text) for text in texts]
    for text, value in zip(texts, values, strict=True):
        if not isinstance(value, Compressor):
            raise ConfigError(f"compress: {text!r} is a {type(value).__name__.lower()}, wanted a compressor")
    return values[0] if len(values) == 1 else chain(*values)


def number(text: str) -> Any:
    """A setting's value from text: a number, true or false, a list; anything else stays text."""
    lowered = text.strip().lower()
    if lowered in WORDS:
        return WORDS[lowered]
    try:
        return ast.literal_eval(text.strip())
    except UNREADABLE:
        return text


def bind(what: str, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Call ``function``, refusing arguments that it does not have.

    Raises: ConfigError naming the nearest argument, or saying which are wanted.
    """
    parameters = inspect.signature(function).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for key in kwargs:
            if key not in parameters:
                raise unknown(f"setting of {what}", key, parameters)
    try:
        bound = inspect.signature(function).bind(*args, **kwargs)
    except TypeError as error:
        raise ConfigError(f"{what}: {error}; it takes {inspect.signature(function)}") from None
    _check_parts(what, function, bound.arguments)
    try:
        return function(*bound.args, **bound.kwargs)
    except LaconicError:
        raise
    except (TypeError, AttributeError, ValueError, ArithmeticError) as error:
        given = ", ".join(f"{k}={v!r}" for k, v in bound.arguments.items())
        raise ConfigError(f"{what}: cannot be made with {given}: {error}") from error


def _check_parts(what: str, function: Callable[..., Any], arguments: dict[str, Any]) -> None:
    """Refuse a part in another's place, diloco(every_step()) say, some of whose fields might happen to fit."""
    hints = get_type_hints(function)
    for key, value in arguments.items():
        kinds = [hints[key], *get_args(hints[key])] if key in hints else []
        wanted = [kind for kind in kinds if hasattr(kind, "_fields")]
        for part in value if type(value) is tuple else (value,):
            if hasattr(part, "_fields") and kinds and type(part) not in wanted:
                names = " or ".join(kind.__name__.lower() for kind in wanted) or "a plain value"
                raise ConfigError(f"{what}: {key} is {part.name} ({type(part).__name__.lower()}); wanted: {names}")


def _value(node: ast.expr, text: str) -> Any:
    match node:
        case ast.Call(func=ast.Name(id=name)):
            function = _function(name)
            keys = [k.arg for k in node.keywords]
            if None in keys or len(set(keys)) < len(keys):
                raise ConfigError(f"{text!r}: each setting of {name} is written once, as name=value")
            parameters = list(inspect.signature(function).parameters.values())
            args = [_argument(a, parameters[i] if i < len(parameters) else None, text) for i, a in enumerate(node.args)]
            by_name = {p.name: p for p in parameters}
            kwargs = {k.arg: _argument(k.value, by_name.get(k.arg), text) for k in node.keywords if k.arg}
            return bind(name, function, args, kwargs)
        case ast.Name(id=name) if name in WORDS:
            return WORDS[name]
        case ast.Name(id=name):
            return bind(name, _function(name), [], {})
    try:
        return ast.literal_eval(node)
    except UNREADABLE:
        raise ConfigError(f"{text!r}: only names of laconic's functions and constants may stand in a nesting") from None


def _argument(node: ast.expr, parameter: inspect.Parameter | None, text: str) -> Any:
    # A parameter whose default is a function wants the function and not what it returns: warm_up(topk, 0.001).
    if isinstance(node, ast.Name) and parameter is not None and inspect.isfunction(parameter.default):
        return _function(node.id)
    return _value(node, text)


def _function(name: str) -> Callable[..., Any]:
    if name not in names():
        raise unknown("part", name, names())
    return names()[name]
