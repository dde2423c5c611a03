"""Load teachers by name, as written on a command line or in a store's manifest.

A name is ``chgnet model=0.3.0``, ``package.module:factory key=value``, or several of these with
`` & `` between them for an ensemble.
"""

from __future__ import annotations

import importlib
import inspect
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from kd_plugins.names import suggestion
from kd_plugins.teachers.calculator import as_teacher
from kd_plugins.teachers.ensemble import Ensemble
from kd_plugins.teachers.teacher import Teacher, TeacherError, check_device, resolve_device

GROUP = "kd_plugins.teachers"
"""Entry-point group: a name to a function that returns an ASE calculator or a `Teacher`."""

AND = " & "
"""Between the teachers of an ensemble."""


@dataclass(frozen=True)
class TeacherSpec:
    """A teacher's factory and its arguments, from which any process can make the teacher.

    Args:
        name: a short name of the entry-point group ``kd_plugins.teachers``, or
            ``package.module:factory``.
        arguments: keyword arguments of the factory.

    >>> str(TeacherSpec("mace.calculators:mace_mp", {"model": "small", "dispersion": True}))
    'mace.calculators:mace_mp model=small dispersion=true'
    >>> TeacherSpec.parse("chgnet model=r2scan")
    TeacherSpec(name='chgnet', arguments={'model': 'r2scan'})
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str | Sequence[str]) -> TeacherSpec:
        """Read ``NAME key=value ...``; a value is JSON, or else a string.

        Args:
            text: one text, or the words of a command line, of which the first may hold all.

        Raises:
            TeacherError: if there is no name, or for a word after it that is no ``key=value``.
        """
        name, *words = _split_words(text) or [""]
        if not name:
            raise TeacherError(f"expected a teacher's name and perhaps key=value, got {text!r}")

        arguments = {}
        for word in words:
            key, equals, value = word.partition("=")
            if not equals or not key.isidentifier():
                raise TeacherError(
                    f"teacher {name!r}: expected key=value, got {word!r} (structures stand before "
                    "--teacher)"
                )
            if key in arguments:
                raise TeacherError(f"teacher {name!r}: {key} is given twice; give it once")
            arguments[key] = _read_value(value)
        return cls(name, arguments)

    def __str__(self) -> str:
        words = [f"{key}={_write_value(value)}" for key, value in self.arguments.items()]
        return shlex.join([self.name, *words])

    def check(self) -> None:
        """Find the factory and compare its parameters with the arguments, without calling it.

        Raises:
            TeacherError: if there is none of that name, or it does not take these arguments.
        """
        signature = self._signature()
        if signature is None:
            return

        # `load` gives the device, so the user need not.
        given = {"device": "auto"} if "device" in signature.parameters else {}
        try:
            signature.bind(**{**given, **self.arguments})
        except TypeError as error:
            raise TeacherError(f"teacher {str(self)!r} cannot be made: {error}") from None

    def _signature(self) -> inspect.Signature | None:
        """Return the factory's signature, or None for a compiled one that has none.

        Raises:
            TeacherError: for an argument that the factory does not take.
        """
        factory = _find_factory(self.name)
        try:
            signature = inspect.signature(factory)
        except ValueError:
            return None

        parameters = signature.parameters
        unknown = [key for key in self.arguments if key not in parameters]
        takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
        if unknown and not takes_any:
            others = (
                suggestion(unknown[0], parameters) if parameters else ", nor any other argument"
            )
            raise TeacherError(f"teacher {self.name!r} takes no {unknown[0]!r}{others}")
        return signature

    def load(self, device: str = "auto") -> Teacher:
        """Return the teacher.

        A factory with a parameter ``device`` is given the device. Any other decides by itself
        where its teacher computes, which for most is the CPU.

        Args:
            device: as `resolve_device` takes it; ``device=...`` in the name goes before ``auto``.

        Raises:
            TeacherError: if it cannot be found, its factory fails, or it cannot compute on the
                device.
        """
        where = resolve_device(device)
        signature = self._signature()

        arguments = dict(self.arguments)
        named = arguments.get("device", device)
        if "auto" not in (device, named) and str(named) != where:
            raise TeacherError(
                f"teacher {str(self)!r} names a device in its arguments, and {device!r} is another "
                "one: name it once"
            )
        if signature is not None and "device" in signature.parameters:
            arguments["device"] = where if named == "auto" else named

        made = self._call(_find_factory(self.name), arguments)
        try:
            teacher = as_teacher(made)
        except TeacherError as error:
            raise TeacherError(f"teacher {self.name!r}: {error}") from error

        check_device(teacher, device, f"teacher {self.name!r}")
        return teacher

    def _call(self, factory: Any, arguments: Mapping[str, Any]) -> Any:
        """Return what the factory makes; whatever it raises becomes a TeacherError.

        A SystemExit too: it would end the command with its code and without a message.
        """
        try:
            return factory(**arguments)
        except TeacherError:
            raise
        except (Exception, SystemExit) as error:
            raise TeacherError(
                f"teacher {str(self)!r} cannot be made: {type(error).__name__}: {error}"
            ) from error


def parse_teachers(text: str | Sequence[str]) -> tuple[TeacherSpec, ...]:
    """Read a manifest's ``teacher``: one name, or several with " & " between them.

    Args:
        text: as `TeacherSpec.parse` takes it.

    Raises:
        TeacherError: as `TeacherSpec.parse`.
    """
    members: list[list[str]] = [[]]
    for word in _split_words(text):
        if word == AND.strip():
            members.append([])
        else:
            members[-1].append(word)

    return tuple(TeacherSpec.parse(words) for words in members)


def teacher_name(specs: Sequence[TeacherSpec]) -> str:
    """Write teachers as `parse_teachers` reads them."""
    return AND.join(map(str, specs))


def check_different(specs: Sequence[TeacherSpec]) -> None:
    """Refuse an ensemble that has one teacher twice, whose spread would be too small.

    Raises:
        TeacherError: naming it.
    """
    names = [str(spec) for spec in specs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise TeacherError(
            f"teacher {twice!r} is given twice; an ensemble's spread is that of different teachers"
        )


def is_bare(spec: TeacherSpec) -> bool:
    """Return whether a teacher is an installed short name without arguments.

    Only such a name may be read from a file that somebody else wrote: any other would import a
    module or open a file that its author chose.
    """
    return not spec.arguments and spec.name in {point.name for point in _entry_points()}


def load_teacher(teacher: str | Sequence[TeacherSpec], device: str = "auto") -> Teacher:
    """Return a teacher, or an `Ensemble` of several.

    Args:
        teacher: such as ``"chgnet+d3"``, ``"mace.calculators:mace_mp model=small"``, or several
            with ``" & "`` between them.
        device: ``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        TeacherError: if one cannot be found, its factory fails, or it cannot compute on the device.

    >>> load_teacher("emt").quantities
    ('energy', 'energy_per_atom', 'forces', 'stress', 'atomic_energies', 'magmoms')
    """
    is_parsed = isinstance(teacher, list | tuple) and all(
        isinstance(one, TeacherSpec) for one in teacher
    )
    specs = teacher if is_parsed else parse_teachers(teacher)  # type: ignore[arg-type]

    members = [spec.load(device) for spec in specs]  # type: ignore[union-attr]
    return members[0] if len(members) == 1 else Ensemble(members)


def _find_factory(name: str) -> Any:
    """Return the factory of a short name or of ``package.module:factory``.

    Raises:
        TeacherError: if there is none, or the module that defines it cannot be imported.
    """
    module, colon, attribute = name.partition(":")
    if colon:
        return _import_factory(module, attribute, name)

    known = {point.name: point for point in _entry_points()}
    if name not in known:
        raise TeacherError(
            f"unknown teacher {name!r}{suggestion(name, known)}; any ASE calculator is "
            "package.module:factory"
        )

    try:
        return known[name].load()
    except ImportError as error:
        raise TeacherError(f"teacher {name!r} is not installed: {error}") from error
    except SystemExit as error:
        raise TeacherError(f"teacher {name!r}: its module ends Python ({error!r})") from error
    except AttributeError as error:
        raise TeacherError(f"teacher {name!r} is named by a package, but {error}") from error


def _import_factory(module: str, attribute: str, name: str) -> Any:
    try:
        found = importlib.import_module(module)
        # In the `try`, too: a module with its own `__getattr__` may import here.
        factory = getattr(found, attribute, None)
    except (Exception, SystemExit) as error:
        why = f"{type(error).__name__}: {error}"
        raise TeacherError(f"teacher {name!r}: {module!r} cannot be imported: {why}") from error

    if factory is None:
        names = [known for known, value in vars(found).items() if callable(value)]
        raise TeacherError(
            f"teacher {name!r}: {module} has no factory {attribute!r}{suggestion(attribute, names)}"
        )
    if not callable(factory):
        raise TeacherError(
            f"teacher {name!r}: {attribute} of {module} is a {type(factory).__name__}; expected a "
            "function that returns an ASE calculator"
        )
    return factory


def _entry_points() -> Iterable[metadata.EntryPoint]:
    return metadata.entry_points(group=GROUP)


def _split_words(text: str | Sequence[str]) -> list[str]:
    """Return the words of a text as a shell splits it, or those of a command line.

    Raises:
        TeacherError: for what is no text, or a quotation without its end.
    """
    words = [text] if isinstance(text, str) else text
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        raise TeacherError(f"expected a teacher's name and perhaps key=value, got {text!r}")

    first, *others = words or [""]
    try:
        # A name has no space in it, so a first word with one was quoted with its arguments.
        return [*shlex.split(first), *others]
    except ValueError as error:
        raise TeacherError(f"teacher {first!r} cannot be read: {error}") from error


def _read_value(text: str) -> Any:
    """Return the value of ``key=value``: JSON where it is valid, otherwise the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _write_value(value: Any) -> str:
    """Return the text from which `_read_value` reads a value back."""
    # A text such as "1" or "true" is written with its quotes, or it would be read as a number.
    is_plain = isinstance(value, str) and _read_value(value) == value
    return value if is_plain else json.dumps(value)
