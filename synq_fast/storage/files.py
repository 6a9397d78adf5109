"""Files that are whole or absent at every moment, whenever the process is killed."""

from __future__ import annotations

import os
import socket
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, uint8

from synq_fast.errors import StorageError

_CHECKSUM = "crc32"
_ABANDONED_SECONDS = 3600.0


def write_text(path: Path, text: str) -> None:
    """Replace a text file so that readers see the old or the new content, never a part.

    Raises:
        StorageError: the file cannot be written; the old one stays.
    """
    _replace(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file so that readers see the old or the new content, never a part.

    Raises:
        StorageError: the file cannot be written; the old one stays.
    """
    _replace(path, content)


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    previous: Path | None = None,
) -> None:
    """Replace a safetensors file in one move, with a checksum of its content in its metadata.

    Args:
        path: the file.
        tensors: on any device, in any layout.
        metadata: texts by name; ``crc32`` is taken.
        previous: where the file that was at ``path`` goes, once the new one is on the disk.

    Raises:
        StorageError: the file cannot be written; the old one stays.
    """
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    texts = dict(metadata or {})
    texts[_CHECKSUM] = _checksum(plain, texts)
    _replace(path, save(plain, texts), previous)


def read_tensors(path: Path, *, checked: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file, compared with its checksum where it has one.

    The tensors are maps of the file.

    Args:
        path: the file.
        checked: take a file without a checksum for damaged.

    Raises:
        OSError: the file is missing, unreadable or damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
            texts: dict[str, str] = file.metadata() or {}
    except SafetensorError as error:
        raise OSError(str(error)) from error
    stored = texts.pop(_CHECKSUM, None)
    if (checked or stored is not None) and stored != _checksum(tensors, texts):
        raise OSError("its content does not match its checksum")
    return tensors, texts


def read_rows(path: Path, rows: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Some rows of some tensors of a safetensors file, which alone are read: nothing is compared.

    Args:
        path: the file.
        rows: numbers along the first dimension by the name of the tensor.

    Raises:
        OSError: the file is missing, unreadable, or lacks one of the tensors.
    """
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in rows}
            return {
                name: torch.cat([slices[name][row : row + 1] for row in chosen])
                for name, chosen in rows.items()
            }
    except SafetensorError as error:
        raise OSError(str(error)) from error


def rows_of(path: Path, name: str) -> int:
    """How many rows a tensor of a safetensors file has.

    Raises:
        OSError: the file is missing, unreadable, or lacks the tensor.
    """
    try:
        with safe_open(path, "pt") as file:
            count: int = file.get_slice(name).get_shape()[0]
            return count
    except SafetensorError as error:
        raise OSError(str(error)) from error


def remove_leftovers(folder: Path) -> None:
    """Delete what killed writers left in a folder; files that somebody is writing stay."""
    with suppress(OSError):
        for path in folder.glob("*.tmp"):
            with suppress(OSError, ValueError):
                if _is_abandoned(path):
                    path.unlink()


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Explain a failed write to ``path``.

    Raises:
        StorageError: in place of any ``OSError``.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}. Make room or give write permission; "
            f"finished work is kept, and a run goes on with --resume (resume=True)"
        ) from error


def _replace(path: Path, content: bytes, previous: Path | None = None) -> None:
    writer = f"{socket.gethostname()}-{os.getpid()}"
    temporary = path.with_name(f"{path.name}.{writer}.tmp")
    with storage_errors(path):
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if previous is not None:
                with suppress(FileNotFoundError):
                    os.replace(path, previous)
            os.replace(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    # Renames reach the disk with their folder. Some file systems cannot do this, nor can Windows.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _is_abandoned(temporary: Path) -> bool:
    host, _, process = temporary.stem.rpartition("-")
    if os.name == "posix" and host.endswith(f".{socket.gethostname()}"):
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False
    return time.time() - temporary.stat().st_mtime > _ABANDONED_SECONDS


def _checksum(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> str:
    value = zlib.crc32(repr(sorted(texts.items())).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        value = zlib.crc32(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode(), value)
        value = zlib.crc32(tensor.flatten().view(uint8).numpy().data, value)
    return f"{value:08x}"
