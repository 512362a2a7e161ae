"""What can be trained: a module of three functions, built in or in a file of the user's.

::

    make_model(**options) -> nn.Module
    batches(split, worker, workers, seed, **options) -> iterator of batches
    loss(model, batch) -> a scalar tensor

``split`` is ``"train"``, an endless iterator over this worker's own share, shuffled by ``seed``, or ``"eval"``, a
finite one that is the same for all workers. A module may also have ``make_optimizer(model)`` (otherwise AdamW with
learning rate 0.001), ``tokens(batch)`` (how many examples or tokens a batch trains on; otherwise the length of its
first tensor), and ``OPTIONS``, which maps the name of each option to its default and a sentence about it; without
``OPTIONS``, the parameters that have defaults are the options. A function is given those options that are in its
signature.

:func:`load` finds a workload and sets its options. The built-in ones are imported only when they are loaded.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from laconic.errors import ConfigError, WorkloadError, unknown

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

__all__ = ["Workload", "describe", "load", "names"]

Option = str | int | float | bool
HERE = Path(__file__).parent
BUILT_IN = ("adult", "fashion", "shakespeare")
SPLITS = ("train", "eval")
SIGNATURES = {
    "make_model": "make_model() -> nn.Module",
    "batches": "batches(split, worker, workers, seed) -> iterator of batches",
    "loss": "loss(model, batch) -> scalar tensor",
    "make_optimizer": "make_optimizer(model) -> torch.optim.Optimizer",
    "tokens": "tokens(batch) -> int",
}
REQUIRED = ("make_model", "batches", "loss")
# How many arguments laconic itself hands to each function; what a function takes beyond them are options.
NUM_GIVEN = {"make_model": 0, "batches": 4, "loss": 2, "make_optimizer": 1, "tokens": 1}


@dataclass(frozen=True)
class Workload:
    """A model, its data and its loss, with every option set.

    ``options`` holds each option's effective value, and ``path`` the user's file, or None for a built-in workload.
    """

    name: str
    make_model: Callable[[], nn.Module]
    batches: Callable[[str, int, int, int], Iterator[Any]]
    loss: Callable[[nn.Module, Any], Tensor]
    make_optimizer: Callable[[nn.Module], Optimizer]
    tokens: Callable[[Any], int]
    options: Mapping[str, Option]
    path: Path | None = None

    def check(self, worker: int = 0, workers: int = 1, seed: int = 0) -> None:
        """Try every function once, on one batch, so that what cannot be trained is said before training starts.

        The global random state is left as it was.

        Raises: WorkloadError that says which function returned what, and what was wanted.
        """
        import torch

        with torch.random.fork_rng(devices=[]):
            model = self._call("make_model", self.make_model)
            if not isinstance(model, torch.nn.Module):
                raise WorkloadError(f"{self.name}: make_model must return an nn.Module, got {_kind(model)}")
            if not any(p.requires_grad for p in model.parameters()):
                raise WorkloadError(f"{self.name}: the model of make_model has no parameter that requires a gradient")
            self._call("batches", lambda: next(self.batches("eval", worker, workers, seed)))
            batch = self._call("batches", lambda: next(self.batches("train", worker, workers, seed)))
            value = self._call("loss", lambda: self.loss(model, batch))
            self._check_loss(value)
            count = self._call("tokens", lambda: self.tokens(batch))
            if not isinstance(count, int) or count < 1:
                raise WorkloadError(f"{self.name}: tokens must return a whole number from 1 on, got {count!r}")
            optimizer = self._call("make_optimizer", lambda: self.make_optimizer(model))
            if not isinstance(optimizer, torch.optim.Optimizer):
                raise WorkloadError(
                    f"{self.name}: make_optimizer must return a torch optimizer, got {_kind(optimizer)}"
                )

    def _check_loss(self, value: Any) -> None:
        import torch

        if not isinstance(value, torch.Tensor):
            raise WorkloadError(
                f"{self.name}: loss must return a tensor, got {_kind(value)}; .item() would cut the gradient"
            )
        if value.dim() != 0:
            raise WorkloadError(
                f"{self.name}: loss must return a single number, got a tensor of shape {list(value.shape)}; "
                "take its mean over the batch"
            )
        if not value.is_floating_point():
            raise WorkloadError(f"{self.name}: loss must return a floating-point number, got one of {value.dtype}")
        if not value.requires_grad:
            raise WorkloadError(
                f"{self.name}: the loss does not depend on the model's parameters; compute it from model(...), "
                "without .detach(), .item() or torch.no_grad()"
            )
        if not torch.isfinite(value):
            raise WorkloadError(f"{self.name}: the loss of the very first batch is {value.item()}, before any training")

    def _call(self, function: str, call: Callable[[], Any]) -> Any:
        """``call()``, its own error told in a sentence with the line of the user's file."""
        try:
            return call()
        except (ConfigError, WorkloadError):
            raise
        except Exception as error:
            where = "" if self.path is None else _line(error, self.path)
            raise WorkloadError(f"{self.name}: {function} failed{where}: {_told(error)}") from error


def names() -> list[str]:
    """The built-in workloads."""
    return list(BUILT_IN)


def describe(name_or_path: str) -> str:
    """What a workload is, in one line, and one line for each of its options.

    The file is read, not run, so this is quick and costs no import of torch.

    Raises: ConfigError for a name or a file that does not exist.
    """
    path = _path(name_or_path) or HERE / f"{_built_in(name_or_path)}.py"
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError as error:
        raise ConfigError(f"{path}: cannot be read{_line(error, path)}: {_told(error)}") from error
    lines = [(ast.get_docstring(tree) or f"No description: {path.name} has no docstring.").splitlines()[0]]
    for name, (default, sentence) in _written_options(tree).items():
        lines.append(f"  {name:<12} {sentence} (default: {default})")
    return "\n".join(lines)


def load(name_or_path: str, options: Mapping[str, Option] | None = None) -> Workload:
    """The built-in workload of that name, or the one in the user's file, with ``options`` set.

    What ends in ``.py`` or has a slash is a file. An option given as text becomes what its default is.

    Raises: ConfigError for a name, a file or an option that does not exist, a value that does not fit, and a file
            that does not run or lacks a function.
    """
    path = _path(name_or_path)
    if path is None:
        name = _built_in(name_or_path)
        module = importlib.import_module(f"laconic.workloads.{name}")
    else:
        name, module = path.stem, _run_file(path)
    functions = _functions(module, where=str(path or name))
    defaults = _defaults(module, functions, where=str(path or name))
    chosen = dict(defaults)
    for option, value in (options or {}).items():
        if option not in defaults:
            if not defaults:
                raise ConfigError(f"{name} has no options, got {option}={value!r}")
            raise unknown(f"option of {name}", option, defaults)
        chosen[option] = _as(defaults[option], value, f"{name}: option {option}")
    bound = {
        function: partial(body, **{o: v for o, v in chosen.items() if o in _accepted(function, body, chosen)})
        for function, body in functions.items()
    }
    return Workload(
        name=name,
        make_model=bound["make_model"],
        batches=_careful(name, bound["batches"]),
        loss=bound["loss"],
        make_optimizer=bound.get("make_optimizer", _adamw),
        tokens=bound.get("tokens", _length),
        options=chosen,
        path=path,
    )


def _built_in(name: str) -> str:
    if name not in BUILT_IN:
        error = unknown("workload", name, BUILT_IN)
        raise ConfigError(f"{error}; a file of your own is given by its path, such as mine.py")
    return name


def _path(name_or_path: str) -> Path | None:
    """The user's file, or None if a built-in workload is meant."""
    text = str(name_or_path)
    if not text.endswith(".py") and "/" not in text and "\\" not in text:
        return None
    path = Path(text).expanduser().absolute()
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise ConfigError(f"workload {text!r}: {path} {what}; the built-in workloads are {', '.join(BUILT_IN)}")
    return path


def _run_file(path: Path) -> ModuleType:
    """The user's file as a module, under a name that no other module has."""
    name = f"laconic_workload_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise ConfigError(f"workload {path}: not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # so that the file can import what lies beside it
    sys.modules[name] = module  # before it runs, as Python does: dataclasses and pickle look their module up
    try:
        # Compiled here, not by the loader, which would leave a __pycache__ beside the user's file and trust it.
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ConfigError(f"workload {path}: cannot be imported{_line(error, path)}: {_told(error)}") from error
    return module


def _functions(module: ModuleType, where: str) -> dict[str, Callable[..., Any]]:
    """The functions a workload may have, those that this one has."""
    missing = [name for name in REQUIRED if not callable(getattr(module, name, None))]
    if missing:
        wanted = "\n".join(f"    {SIGNATURES[name]}" for name in missing)
        raise ConfigError(f"workload {where}: lacks {' and '.join(missing)}; wanted:\n{wanted}")
    functions = {name: getattr(module, name) for name in SIGNATURES if callable(getattr(module, name, None))}
    for name, body in functions.items():
        try:
            inspect.signature(body).bind(*range(NUM_GIVEN[name]))
        except TypeError as error:
            raise ConfigError(
                f"workload {where}: {name}{inspect.signature(body)} cannot be called as {SIGNATURES[name]}: {error}"
            ) from error
    return functions


def _accepted(function: str, body: Callable[..., Any], options: Sequence[str] | Mapping[str, Any]) -> set[str]:
    """Which of the options a function takes: those among its parameters, or all with ``**options``."""
    parameters = list(inspect.signature(body).parameters.values())
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return set(options)
    free = {p.name for p in parameters[NUM_GIVEN[function] :] if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return free & set(options)


def _defaults(module: ModuleType, functions: Mapping[str, Callable[..., Any]], where: str) -> dict[str, Option]:
    """Each option's default, from ``OPTIONS`` or else from the functions' signatures."""
    if not hasattr(module, "OPTIONS"):
        return {
            p.name: p.default
            for name, body in functions.items()
            for p in list(inspect.signature(body).parameters.values())[NUM_GIVEN[name] :]
            if isinstance(p.default, Option)
        }
    defaults: dict[str, Option] = {}
    for name, entry in dict(module.OPTIONS).items():
        if not (isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], Option)):
            raise ConfigError(
                f"workload {where}: OPTIONS[{name!r}] must be a default (text, number or truth) and a sentence, "
                f"such as (16, 'windows in a batch'), got {entry!r}"
            )
        if not any(_accepted(function, body, [name]) for function, body in functions.items()):
            raise ConfigError(f"workload {where}: OPTIONS names {name!r}, but no function has a parameter of that name")
        defaults[name] = entry[0]
    return defaults


def _written_options(tree: ast.Module) -> dict[str, tuple[Any, str]]:
    """``OPTIONS`` as it is written in a file, if it is written out."""
    for statement in tree.body:
        target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
        if isinstance(target, ast.Name) and target.id == "OPTIONS":
            try:
                written = dict(ast.literal_eval(statement.value))  # type: ignore[attr-defined]
            except (TypeError, ValueError):
                return {}  # computed, not written out
            return {name: entry for name, entry in written.items() if isinstance(entry, tuple) and len(entry) == 2}
    return {}


def _as(default: Option, value: Option, what: str) -> Option:
    """``value`` as the type of ``default``; nothing is rounded or guessed."""
    kind = type(default)
    if kind is bool:
        truths = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if str(value).lower() in truths:
            return truths[str(value).lower()]
        raise ConfigError(f"{what} must be true or false, got {value!r}")
    try:
        converted = kind(value)
        if kind is int and float(value) != converted:
            raise ValueError
    except (ValueError, OverflowError):
        wanted = "a whole number" if kind is int else "a number"
        raise ConfigError(f"{what} must be {wanted} such as {default}, got {value!r}") from None
    return converted


def _careful(name: str, batches: Callable[..., Any]) -> Callable[..., Iterator[Any]]:
    """The workload's own ``batches``, with a sentence where they end and must not."""

    def careful(split: str, worker: int = 0, workers: int = 1, seed: int = 0) -> Iterator[Any]:
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        if not 0 <= worker < workers:
            raise ConfigError(f"{name}: worker must be from 0 to workers - 1 = {workers - 1}, got {worker}")
        made = batches(split, worker, workers, seed)
        try:
            return _counted(name, iter(made), split)
        except TypeError:
            wanted = "yield batches, or return something to iterate over"
            raise WorkloadError(f"{name}: batches({split!r}, …) must {wanted}, got {_kind(made)}") from None

    return careful


def _counted(name: str, iterator: Iterator[Any], split: str) -> Iterator[Any]:
    count = 0
    for batch in iterator:
        yield batch
        count += 1
    if count == 0:
        raise WorkloadError(f"{name}: batches({split!r}, …) yields nothing; are there fewer examples than one batch?")
    if split == "train":
        raise WorkloadError(
            f"{name}: batches('train', …) ended after {count} batches, and it must be endless, because a run ends at "
            "its own budget; put its body into `while True:`"
        )


def _adamw(model: nn.Module) -> Optimizer:
    import torch

    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def _length(batch: Any) -> int:
    """The length of the first tensor of a batch, looking into its tuples, lists and dictionaries."""
    waiting = [batch]
    while waiting:
        item = waiting.pop(0)
        if hasattr(item, "shape"):
            return int(item.shape[0]) if len(item.shape) else 1
        if isinstance(item, Mapping):
            waiting = [*item.values(), *waiting]
        elif isinstance(item, (tuple, list)):
            waiting = [*item, *waiting]
    raise WorkloadError(f"a batch has no tensor to take its length from; write {SIGNATURES['tokens']}")


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def _told(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg}"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _line(error: BaseException, path: Path) -> str:
    """``" at line 7"``: the last line of the user's file that the error passed through."""
    if isinstance(error, SyntaxError) and error.filename in (str(path), "<unknown>"):
        return f" at line {error.lineno}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    return f" at line {frames[-1].lineno} (`{frames[-1].line}`)" if frames else ""
