"""Read torch files without running code in them, and explain what another file is."""

from __future__ import annotations

import io
import mmap
import pickle
import pickletools
import re
import tarfile
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

_HEAD = 512
"""Bytes by which a file is recognised."""
_ZIP = b"PK"
"""The start of a zip archive, which torch.save has written since torch 1.6."""
_MAGIC = 0x1950A86A20F9469CFC6C
"""The first pickle of a file in torch's older format, which is not a zip archive."""
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_HTML = re.compile(rb"\s*(<!--.*?-->\s*)*<(!doctype|html|head|body|\?xml|svg)\b", re.I | re.S)
_PLAIN = re.compile(
    r"torch(\.\w+)*\.\w*(Storage|Tensor|_rebuild\w+|Parameter|Size|device|dtype|_get_layout|int\d+|"
    r"uint\d+|b?float\d+|complex\d+|bool)|collections\.(OrderedDict|Counter)|_codecs\.encode|"
    r"(builtins|__builtin__)\.(set|bytearray|complex)"
)
"""Classes and functions of plain weights, for messages. torch decides itself what it allows."""


def load_torch_file(
    path: str | Path,
    *,
    trust_pickle: object,
    remedy: str,
    pickle_module: Any = None,
) -> Any:
    """Load a file of ``torch.save``, its tensors on the CPU.

    Tensors, numbers, strings and containers of them are read, and no code is run. A TorchScript
    archive and torch's oldest format, a tar file, are always refused: torch before 2.6 runs code in
    them even with ``weights_only=True``.

    Args:
        path: of the file; ``~`` is expanded.
        trust_pickle: also read pickled objects of any class, which may run any code. Only for a
            file that the user has named and trusts.
        remedy: what to do about such objects if the user trusts the file, such as ``"set
            student.trust_pickle: true"``. The error for any other fault leaves it out.
        pickle_module: has an ``Unpickler`` that makes only known classes, for files of a known
            kind that hold more than tensors; used where ``trust_pickle`` is false.

    Raises:
        FileNotFoundError: if there is no such file.
        OSError: if it is a folder or may not be read.
        ValueError: if it holds more than that, is damaged, or is another kind of file, which is
            named; or if ``trust_pickle`` is not a boolean.
    """
    if not isinstance(trust_pickle, bool):
        raise ValueError(f"trust_pickle: expected true or false, got {trust_pickle!r}")

    path = Path(path).expanduser()
    _check_readable(path)
    foreign = _foreign_kind(path)
    if foreign:
        raise ValueError(f"{path}: {foreign}; expected a file that torch.save wrote")

    restricted = not trust_pickle and pickle_module is None
    module = None if trust_pickle else pickle_module
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of files that it did not write
            return torch.load(
                path, map_location="cpu", weights_only=restricted, pickle_module=module
            )
    except OSError as error:
        raise OSError(f"{path}: cannot be read ({error})") from error
    except Exception as error:  # a damaged or foreign file can raise anything
        raise ValueError(f"{path}: {_reason(error, path, trust_pickle, remedy)}") from error


def pickled_names(path: Path) -> Iterator[str]:
    """Yield the classes and functions that the file's pickle names, in order; run no code.

    A file that is cut short gives those before the cut.
    """
    # A pickle is a program for a stack machine. Follow only its strings: on the stack and in the
    # memo, from which it takes them again.
    memo: dict[int, str] = {}
    recent: list[str] = []
    try:
        for opcode, argument, _ in _operations(path):
            if opcode.name in ("GLOBAL", "INST"):
                yield str(argument).replace(" ", ".", 1)
            elif opcode.name == "STACK_GLOBAL":  # module and name are the last two on the stack
                yield ".".join(recent[-2:])
            elif opcode.name in ("MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT"):
                place = len(memo) if opcode.name == "MEMOIZE" else int(argument)
                memo[place] = recent[-1] if recent else ""
            elif opcode.name in ("BINGET", "LONG_BINGET", "GET"):
                recent.append(memo.get(int(argument), ""))
            elif isinstance(argument, str):
                recent.append(argument)
    except (ValueError, EOFError, KeyError, OSError, NotImplementedError, zipfile.BadZipFile):
        return


def _check_readable(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; expected a file that torch.save wrote")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if not path.is_file():
        raise OSError(f"{path}: is no ordinary file; expected one that torch.save wrote")
    try:
        path.open("rb").close()
    except PermissionError:
        raise PermissionError(
            f"{path}: may not be read (permission denied); ask its owner, or copy it"
        ) from None


def _foreign_kind(path: Path) -> str | None:
    """Return what kind of file it is if torch.save did not write it, else None."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEAD)

    if not size:
        return "is empty, as after a download or a copy that failed"
    if not head.strip(b"\0"):
        return f"its first {len(head)} bytes are zero, as after a crash or a full disk"
    if _HTML.match(head.removeprefix(b"\xef\xbb\xbf")):
        return "is a web page (HTML), so what was downloaded is not the file; download it again"
    if head.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer, not the file itself; run `git lfs pull`"
    programs = [name for start, name in _COMPRESSED.items() if head.startswith(start)]
    if programs:
        return f"is compressed with {programs[0]}; unpack it first"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size:
        return "is a safetensors file, which has no settings of a model"

    if head.startswith(_ZIP):
        return _fault_of_zip(path, size)
    return _fault_of_old_format(path, head)


def _fault_of_zip(path: Path, size: int) -> str | None:
    """Return what is wrong with a zip archive, or None if it may be torch's."""
    if not zipfile.is_zipfile(path):
        return f"is cut short: its end is missing after {size} bytes; copy or download it again"
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        return f"is damaged ({error}); copy or download it again"

    if _is_script(path):
        return "is a TorchScript archive, which is code"
    if not any(part.filename.endswith("/data.pkl") for part in parts):
        return "is a zip archive of something else"
    # torch never compresses. It would unpack a gigabyte of zeros from a megabyte without a warning.
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        return "is a zip archive with compressed parts, which torch.save never writes"
    return None


def _fault_of_old_format(path: Path, head: bytes) -> str | None:
    """Return what kind of file it is, or None if it has torch's older format."""
    if _is_tar(path):
        return "is in torch's oldest format, a tar file"
    try:
        arguments = [argument for _, argument, _ in pickletools.genops(io.BytesIO(head))]
    except (ValueError, EOFError):
        arguments = []
    if _MAGIC in arguments:
        return None

    is_pickle = arguments or head[:1] == b"\x80"
    names = list(pickled_names(path)) if is_pickle else []
    if names:
        return f"is a bare pickle, of {names[0]}, and no torch file"
    text = _first_line(head)
    return "is no torch file" if text is None else f"is text, beginning with {text!r}"


def _is_tar(path: Path) -> bool:
    try:
        return tarfile.is_tarfile(path)
    except (OSError, ValueError):
        return False


def _first_line(head: bytes) -> str | None:
    """Return the start of the first line of a text file; None for any other file."""
    try:
        line = head.decode("utf-8", errors="strict" if len(head) < _HEAD else "ignore").strip()
    except UnicodeDecodeError:
        return None
    return line.splitlines()[0][:40] if line.replace("\n", "").isprintable() else None


def _is_script(path: Path) -> bool:
    # Search the bytes: torch and Python read the table of contents in different ways, so an archive
    # can show Python other files than it shows torch.
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        return content.find(b"constants.pkl") >= 0


def _reason(error: Exception, path: Path, trusted: bool, remedy: str) -> str:
    """Return why a file could not be read, with the remedy only where it would help."""
    message = str(error).rpartition("WeightsUnpickler error: ")[2].strip()
    first = message.split("\n")[0][:200].rstrip(".") or type(error).__name__
    if trusted:
        return f"cannot be read ({type(error).__name__}: {first})"

    if isinstance(error, pickle.UnpicklingError):
        if name := _refused_name(message, path):
            return (
                f"holds more than plain tensors, first {name}: pickled objects, which can run any "
                f"code when they are read. If you trust where the file comes from, {remedy}"
            )
        if "operand" in message:
            return (
                "its pickle protocol is not torch's, though it holds plain tensors; write it again "
                "with torch.save and no pickle_protocol"
            )
        first = "its pickle is not whole"
    return f"is damaged ({first}); copy, download or write it again"


def _refused_name(message: str, path: Path) -> str | None:
    """Return the class or function that torch refused, if the file names one."""
    names = [name.replace("__builtin__.", "builtins.") for name in pickled_names(path)]
    refused = re.search(r"GLOBAL (\S+)", message)

    # torch reports the rest of a name at which a file was cut; only whole names count.
    if refused and refused[1] in names:
        return refused[1]
    return next((name for name in names if not _PLAIN.fullmatch(name)), None)


def _operations(path: Path) -> Iterator[tuple[Any, Any, int | None]]:
    """Yield the operations of the pickle in a torch file, or of the first pickles of an old one."""
    with path.open("rb") as file:
        if file.read(len(_ZIP)) == _ZIP:
            with zipfile.ZipFile(file) as archive:
                inside = [name for name in archive.namelist() if name.endswith("/data.pkl")]
                yield from pickletools.genops(archive.read(inside[0])) if inside else ()
            return
        file.seek(0)
        yield from _first_pickles(file)


def _first_pickles(file: BinaryIO) -> Iterator[tuple[Any, Any, int | None]]:
    # The older format has four pickles: a magic number, a version, the machine and the object.
    for _ in range(4):
        yield from pickletools.genops(file)
