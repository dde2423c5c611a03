"""An unpickler that reads hippynn's graphs without running code from the file.

hippynn writes a model as a pickle of its nodes and modules. A pickle is a list of calls, so reading
one with Python's own unpickler may run any code. This one makes only: empty objects of classes that
hippynn's graphs, layers and networks and torch.nn define, with their attributes set; plain
containers; tensors, by torch's own functions; numbers and arrays of numpy. No constructor of
hippynn or torch.nn is called, no method, and no attribute of anything is looked up.

Anything else in such a file, such as the optimizer, the database or a schedule of another package,
becomes `Unread`: an empty placeholder without behaviour.
"""

from __future__ import annotations

import collections
import enum
import importlib
import operator
import pickle
import pkgutil
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Mapping
from functools import cache
from types import SimpleNamespace
from typing import Any

import hippynn.graphs
import hippynn.layers
import hippynn.networks
import numpy as np
import torch
from hippynn.experiment.assembly import TrainingModules
from hippynn.experiment.evaluator import Evaluator
from hippynn.graphs.nodes.base.node_functions import _BaseNode

# The packages whose classes may be made, and what such a class must derive from.
_ROOMS = (hippynn.graphs, hippynn.layers, hippynn.networks)
_MADE = (torch.nn.Module, _BaseNode, Evaluator)
_FACTORIES = (dict, list, set, int, float)
_NUMBERS = "fiub"
"""Kinds of numpy's numbers; arrays of objects hold pickles of their own."""

# Functions that a model's graph may refer to. They are stored and not called while reading, and
# none of them reaches a file, a process or the interpreter.
_ARITHMETIC = ("add", "sub", "mul", "truediv", "pow", "neg", "abs", "matmul")
_TORCH = (
    *("mean", "sum", "abs", "square", "sqrt", "exp", "log", "min", "max", "std", "var", "clamp"),
    *("tanh", "sigmoid", "relu", "selu", "celu", "sin", "cos", "add", "sub", "mul", "div", "pow"),
)
_FUNCTIONAL = (
    *("softplus", "relu", "silu", "gelu", "elu", "selu", "celu", "leaky_relu", "mish", "tanh"),
    *("sigmoid", "softsign", "logsigmoid", "hardtanh"),
    *("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"),
)
# torch.save writes a tensor as a call of one of these.
_REBUILD = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")

_HARMLESS = frozenset(
    {
        *("pathlib", "datetime", "collections", "decimal", "fractions", "uuid", "random.Random"),
        *("functools.partial", "types.SimpleNamespace", "copyreg._reconstructor"),
        *("builtins.object", "builtins.range", "builtins.bytearray"),
    }
)
"""What a run may hold of the standard library beside its model. It is not made either. Everything
else of the standard library is an attack, since no model needs it, and is refused by name.
"""


class Unread:
    """A placeholder for an object that was not read; see the module."""

    named = ""

    def __new__(cls, *args: Any, **keywords: Any) -> Unread:
        """Return an empty placeholder, whatever the arguments."""
        return object.__new__(cls)


class Unpickler(pickle._Unpickler):
    """Runs a pickle's operations, each on the types that it may act on and no others.

    It is Python's unpickler written in Python, whose operations can be replaced. Those of the one
    in C cannot: they look attributes up and call what they find.
    """

    dispatch = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        """Return the object of a name, without importing anything but hippynn's own modules.

        Raises:
            pickle.UnpicklingError: for something of Python's standard library that is not known to
                be harmless.
        """
        # Python 2's names of modules, which the oldest pickle protocols use.
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))

        known = _known().get((module, name))
        if known is not None:
            return known
        found = _class_of(module, name)
        if found is not None:
            return found

        harmless = {module, f"{module}.{name}"} & _HARMLESS
        if module.partition(".")[0] in sys.stdlib_module_names and not harmless:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is not read")
        return type(name, (Unread,), {"named": f"{module}.{name}"})

    def load_reduce(self) -> None:
        """Call a function, if it is one of those that are made for it."""
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("arguments that are no tuple")

        if isinstance(function, type) and issubclass(function, Unread):
            self.append(function())
            return
        if isinstance(function, type) and issubclass(function, enum.Enum) and len(arguments) == 1:
            self.append(function(arguments[0]))
            return

        # By identity: comparing or hashing an object from the file could run its code.
        make = _CALLS.get(id(function))
        if make is None:
            raise pickle.UnpicklingError(f"a call of {function!r}")
        self.append(make(*arguments))

    def load_newobj(self) -> None:
        """Make an empty object of a class."""
        # No constructor runs: __new__ is that of object, and the attributes are set by BUILD.
        arguments, kind = self.stack.pop(), self.stack.pop()
        if kind is TrainingModules:
            self.append(TrainingModules(*arguments))
        elif isinstance(kind, type) and issubclass(kind, Unread):
            self.append(kind())
        elif isinstance(kind, type) and issubclass(kind, _MADE) and not arguments:
            self.append(object.__new__(kind))
        else:
            raise pickle.UnpicklingError(f"an object of {kind!r}, made of {arguments!r}")

    def load_build(self) -> None:
        """Set the attributes of an object, never those of a class or a function."""
        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, Unread | np.dtype):
            return
        if isinstance(made, np.ndarray) and isinstance(state, tuple):
            _fill(made, state)
            return

        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise pickle.UnpicklingError(f"attributes that are no mapping, of {type(made)!r}")

        if isinstance(made, torch.nn.Module):
            type(made).__setstate__(made, state)
        elif isinstance(made, _BaseNode | Evaluator | collections.OrderedDict):
            vars(made).update(state)
        else:
            raise pickle.UnpicklingError(f"attributes of {type(made)!r}")

    def load_append(self) -> None:
        """Append to a list."""
        value = self.stack.pop()
        self._to(list, lambda made: made.append(value))

    def load_appends(self) -> None:
        """Extend a list."""
        values = self.pop_mark()
        self._to(list, lambda made: made.extend(values))

    def load_setitem(self) -> None:
        """Set an item of a mapping."""
        value, key = self.stack.pop(), self.stack.pop()
        self._to(dict, lambda made: made.__setitem__(key, value))

    def load_setitems(self) -> None:
        """Set items of a mapping."""
        held = self.pop_mark()
        self._to(dict, lambda made: made.update(zip(held[::2], held[1::2], strict=True)))

    def load_additems(self) -> None:
        """Add to a set."""
        values = self.pop_mark()
        self._to(set, lambda made: made.update(values))

    def _to(self, kind: type, do: Callable[[Any], None]) -> None:
        """Change the container on the stack; what is added to a placeholder is dropped."""
        made = self.stack[-1]
        if isinstance(made, kind):
            do(made)
        elif not isinstance(made, Unread):
            raise pickle.UnpicklingError(f"items of {type(made)!r}")

    def load_refused(self) -> None:
        """Refuse an operation that torch.save does not write."""
        raise pickle.UnpicklingError("an operation that torch.save does not write")


def _operations() -> Mapping[int, Any]:
    """Return the opcodes that are replaced: by methods of the class, or by a refusal."""
    own = {
        code[0]: vars(Unpickler)[f"load_{name}"]
        for name, code in {
            "reduce": pickle.REDUCE,
            "newobj": pickle.NEWOBJ,
            "build": pickle.BUILD,
            "append": pickle.APPEND,
            "appends": pickle.APPENDS,
            "setitem": pickle.SETITEM,
            "setitems": pickle.SETITEMS,
            "additems": pickle.ADDITEMS,
        }.items()
    }

    # Old instances, constructors by keyword, the registry of extensions and buffers out of band.
    never = (
        *(pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX, pickle.PERSID),
        *(pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
    )
    return own | {code[0]: Unpickler.load_refused for code in never}


Unpickler.dispatch.update(_operations())
HIPPYNN_PICKLES = SimpleNamespace(__name__=__name__, Unpickler=Unpickler)
"""What `load_torch_file` takes as ``pickle_module``."""


@cache
def _modules() -> frozenset[str]:
    """Return the names of the modules whose classes may be made."""
    inside = (pkgutil.walk_packages(room.__path__, f"{room.__name__}.") for room in _ROOMS)
    return frozenset(one.name for found in inside for one in found)


def _class_of(module: str, name: str) -> type | None:
    """Return a class that a module of hippynn's graphs or of torch.nn itself defines, or None."""
    if module in _modules():
        kinds: tuple[type, ...] = (*_MADE, enum.Enum)
    elif module.startswith("torch.nn.modules.") and module in sys.modules:
        kinds = (torch.nn.Module,)
    else:
        return None

    # vars() and not getattr(), which a module's own __getattr__ could answer; and the class must be
    # defined there and not only imported there.
    found = vars(importlib.import_module(module)).get(name)
    own = isinstance(found, type) and found.__module__ == module and issubclass(found, kinds)
    return found if own else None


def _get(owner: Any, name: Any) -> Any:
    """Return one of torch's functions, which pickles name as attributes of an internal class."""
    if owner is not torch._C._VariableFunctionsClass or name not in _TORCH:
        raise pickle.UnpicklingError(f"the attribute {name!r}")
    return getattr(torch, name)


def _encode(text: str, encoding: str) -> bytes:
    """Return bytes, which pickles of protocol 2 hold as text."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in {encoding!r}")
    return text.encode("latin1")


def _default(factory: Any = None) -> Any:
    return collections.defaultdict(factory if factory in _FACTORIES else None)


def _ordered() -> Any:
    return collections.OrderedDict()


def _set(items: Any = ()) -> Any:
    return set(_listed(items))


def _frozenset(items: Any = ()) -> Any:
    return frozenset(_listed(items))


def _listed(items: Any) -> Any:
    if not isinstance(items, list | tuple):
        raise pickle.UnpicklingError(f"a set of {type(items)!r}")
    return items


def _dtype(code: str, *_: Any) -> np.dtype[Any]:
    found = np.dtype(str(code))
    if found.kind not in _NUMBERS:
        raise pickle.UnpicklingError(f"an array of {code!r}")
    return found


def _number(dtype: np.dtype[Any], content: bytes) -> Any:
    return np.frombuffer(content, _checked(dtype), 1)[0]


def _array(*_: Any) -> Any:
    return np.empty(0)


def _fill(made: Any, state: tuple[Any, ...]) -> None:
    _, shape, dtype, is_fortran, content = state
    if not isinstance(content, bytes):
        raise pickle.UnpicklingError("an array that is not of bytes")
    made.__setstate__((1, tuple(shape), _checked(dtype), bool(is_fortran), content))


def _checked(dtype: Any) -> np.dtype[Any]:
    if not isinstance(dtype, np.dtype) or dtype.kind not in _NUMBERS:
        raise pickle.UnpicklingError("an array that is not of numbers")
    return dtype


class _Name:
    """A name whose function is never returned, only called here with checked arguments."""


_GET, _ENCODE, _DTYPE, _NUMBER, _ARRAY, _DEFAULT = (_Name() for _ in range(6))


@cache
def _known() -> Mapping[tuple[str, str], Any]:
    """Return name to object, besides the classes of modules and nodes."""
    known: dict[tuple[str, str], Any] = {
        ("builtins", "getattr"): _GET,
        ("_codecs", "encode"): _ENCODE,
        ("numpy", "dtype"): _DTYPE,
        ("numpy", "ndarray"): np.ndarray,
        ("collections", "defaultdict"): _DEFAULT,
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch.storage", "UntypedStorage"): torch.UntypedStorage,
        ("torch.nn.parameter", "Parameter"): torch.nn.Parameter,
        ("torch._C", "_VariableFunctionsClass"): torch._C._VariableFunctionsClass,
        ("hippynn.experiment.assembly", "TrainingModules"): TrainingModules,
        ("hippynn.experiment.evaluator", "Evaluator"): Evaluator,
    }
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        known |= {(module, "scalar"): _NUMBER, (module, "_reconstruct"): _ARRAY}
    for kind in (*_FACTORIES, frozenset, slice, complex, tuple):
        known["builtins", kind.__name__] = kind
    for kind in (torch.Size, torch.device, torch.Tensor):
        known["torch", kind.__name__] = kind
    for name in _REBUILD:
        known["torch._utils", name] = getattr(torch._utils, name)
    for name in _ARITHMETIC:
        known["_operator", name] = known["operator", name] = getattr(operator, name)
    for name in _FUNCTIONAL:
        known["torch.nn.functional", name] = getattr(torch.nn.functional, name)
        if hasattr(torch._C._nn, name):
            known["torch._C._nn", name] = getattr(torch._C._nn, name)
    known |= {
        ("torch", name): one for name, one in vars(torch).items() if isinstance(one, torch.dtype)
    }
    return known


_CALLS: Mapping[int, Callable[..., Any]] = {
    id(_GET): _get,
    id(_ENCODE): _encode,
    id(_DTYPE): _dtype,
    id(_NUMBER): _number,
    id(_ARRAY): _array,
    id(_DEFAULT): _default,
    id(collections.OrderedDict): _ordered,
    id(set): _set,
    id(frozenset): _frozenset,
    **{id(kind): kind for kind in (slice, complex, torch.Size, torch.device)},
    **{id(getattr(torch._utils, name)): getattr(torch._utils, name) for name in _REBUILD},
}
"""Identity of a name's object to the function that is called in its place."""
