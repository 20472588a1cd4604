"""Names what a path holds when it is no checkpoint file, and the way from there to one."""

from __future__ import annotations

import re
from pathlib import Path

_TORCH_TAR = (b"sys_info", b"pickle", b"tensors", b"storages")  # any may come first
_AGAIN = "The download went wrong; fetch the file itself."
_BINARY: tuple[tuple[bytes, str], ...] = (
    (b"PK\x05\x06", "an empty zip archive. Copy or download it again."),
    (b"\x1f\x8b", "gzip-compressed. Unpack it first."),
    (b"BZh", "bzip2-compressed. Unpack it first."),
    (b"\xfd7zXZ\x00", "xz-compressed. Unpack it first."),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed. Unpack it first."),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive. Unpack it first."),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras?). Convert it to safetensors."),
    (b"GGUF", "a GGUF file. Convert it to safetensors."),
    (b"\x93NUMPY", "a NumPy array. Save a state dict with torch.save or safetensors."),
    (b"\x89PNG", "a PNG image."),
    (b"\xff\xd8\xff", "a JPEG image."),
)
_EXPECTED = (
    "Expected was a torch .ckpt/.pt/.bin file (zip archive), a .safetensors file, or a "
    "*.index.json that lists shards."
)
_LFS = b"version https://git-lfs.github.com/spec/"


def describe_file(head: bytes) -> str:
    """Say in a sentence or two what a file is that starts with ``head`` (up to 512 bytes).

    >>> describe_file(b"GGUF....").split(".")[0]
    'a GGUF file'
    """
    if head.startswith(_LFS):
        size = re.search(rb"\nsize (\d{1,18})", head)
        promised = f" of {int(size[1])} bytes" if size else ""
        return (
            f"a git-lfs pointer: the file itself{promised} was not downloaded. "
            "Run `git lfs pull` in its repository."
        )
    if head[257:262] == b"ustar" and head[:100].rstrip(b"\0") in _TORCH_TAR:
        return (
            "in torch's tar format from before version 0.1.10. Where you trust it, open it with "
            "torch and save it again: torch.save(torch.load(OLD, weights_only=False), NEW)."
        )
    if head[257:262] == b"ustar":
        return f"a tar archive. Unpack it first. {_EXPECTED}"
    for start, words in _BINARY:
        if head.startswith(start):
            return f"{words} {_EXPECTED}"
    if head[:1] == b"\x80" and head[1:2] in b"\x01\x02\x03\x04\x05":
        return f"a bare pickle, which could run code when opened. {_EXPECTED}"
    words = _describe_text(head) or f"unknown: its first bytes are {head[:8].hex(' ')}."
    return f"{words} {_EXPECTED}"


def _describe_text(head: bytes) -> str:
    """Describe a text file, or return an empty text if ``head`` is not text."""
    # The last character of the head may be cut in the middle.
    text = head.decode("utf-8", errors="ignore")
    if len(text.encode()) < len(head) - 3 or any(ord(c) < 9 for c in text):
        return ""
    if re.match(r"\s*<(!doctype\s+html|html|head|body|\?xml)", text, re.IGNORECASE):
        return f"a web page (HTML), not a checkpoint. {_AGAIN}"
    first = text.strip().splitlines()
    return f"a text file that starts with {first[0][:60]!r}." if first else "a blank text file."


def describe_folder(path: Path) -> str:
    """Say that ``path`` is a folder, of which kind, and which of its files could be meant."""
    if unfinished := describe_unfinished(path):
        return unfinished
    names = sorted(entry.name for entry in path.iterdir())
    files = [n for n in names if n.endswith((".ckpt", ".pt", ".pth", ".bin", ".safetensors"))]
    files += [n for n in names if n.endswith(".index.json")]
    inside = f"It holds: {', '.join(files[:8])}." if files else "It holds no checkpoint file."
    return f"{path} is a folder; one checkpoint file was expected. {inside}"


def describe_unfinished(path: Path) -> str:
    """Say what a folder lacks that would be one checkpoint, or return an empty text."""
    names = [entry.name for entry in path.iterdir()]
    if any(name.endswith(".distcp") for name in names):
        return (
            f"{path} is an unfinished distributed checkpoint (DCP): its table of contents, "
            ".metadata, which is written last, is missing. Copy the whole folder or take the "
            "checkpoint before it."
        )
    if "latest" in names and (path / "latest").is_file():
        return (
            f"{path} holds a file 'latest', as DeepSpeed writes it, but no folder with "
            "*_model_states.pt, so the save that it names is not there. Copy the whole folder."
        )
    return ""
