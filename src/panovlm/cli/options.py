"""Options that several commands share, and what they mean."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from panovlm.errors import ConfigError

if TYPE_CHECKING:
    from panovlm.config.image_input import ImageInput

DTYPES = ("float32", "bfloat16", "float16")
ATTENTIONS = ("auto", "sdpa", "eager", "flash_attention_2")
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def add_loading_options(parser: argparse.ArgumentParser) -> None:
    """Add how a checkpoint is resolved."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="override a setting of the checkpoint, such as models.overlap_ratio=0.25",
    )
    parser.add_argument(
        "--prefer",
        action=_Prefer,
        metavar="[FIELD=]{weights,metadata}",
        help="which side to take where metadata and weights contradict each other, or (again for "
        "each) of which field",
    )
    parser.add_argument(
        "--weights",
        choices=("model", "ema"),
        help="which copy to take where a file holds the live weights and their running average",
    )


class _Prefer(argparse.Action):
    """Collects a side, or sides by field."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        field, sign, side = str(values).rpartition("=")
        if side not in ("weights", "metadata") or (sign and not field):
            parser.error(f"--prefer {values}: weights, metadata or FIELD=weights was expected")
        before = getattr(namespace, self.dest)
        if before is not None and not (field and isinstance(before, dict)):
            parser.error("--prefer is given once for all fields, or once for each of some")
        chosen = {**(before or {}), field: side} if field else side
        setattr(namespace, self.dest, chosen)


def loading_choices(options: argparse.Namespace) -> dict[str, Any]:
    """Return what :func:`add_loading_options` read, as ``resolve`` and its like take it."""
    return {
        "overrides": overrides(options.set),
        "prefer": options.prefer,
        "weights": options.weights,
    }


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Add where and how a model runs."""
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps; default auto")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="type of the weights; default: as in the file",
    )
    parser.add_argument(
        "--strict", action="store_true", help="refuse settings that would have to be assumed"
    )


def add_attention_option(parser: argparse.ArgumentParser) -> None:
    """Add how a model that answers computes its attention."""
    parser.add_argument(
        "--attn-implementation",
        choices=ATTENTIONS,
        default="auto",
        help="attention of tower and language model; default: what transformers takes",
    )


def add_probe_option(parser: argparse.ArgumentParser) -> None:
    """Add whether a loaded model is compared with its checkpoint's probe."""
    parser.add_argument(
        "--no-probe",
        dest="probe",
        action="store_false",
        help="load without comparing what the model computes with what it computed when saved",
    )


def add_input_option(parser: argparse.ArgumentParser) -> None:
    """Add how pictures show the sphere."""
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="how pictures show the sphere, where it is not an equirectangular whole: a field of "
        "data.input, such as layout=cubemap_row or hfov=180 (repeatable)",
    )


def image_input(options: argparse.Namespace) -> ImageInput | None:
    """Return what :func:`add_input_option` read; ``None`` without the option.

    Raises:
        ConfigError: it is impossible.
    """
    if not options.input:
        return None
    from panovlm.config.image_input import ImageInput
    from panovlm.config.load import Lines
    from panovlm.config.validation import validate

    return validate(ImageInput, overrides(options.input, "--input"), Lines("--input"))


def positive(text: str) -> int:
    """Read a whole number from 1 on, as argparse wants it."""
    if not (text.isascii() and text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def nbytes(text: str) -> int:
    """Read a size such as ``500MB``, ``5GB`` or ``2GiB``, as argparse wants it."""
    found = re.fullmatch(r"(\d+)\s*([KMG]i?)?B?", text.strip(), re.IGNORECASE | re.ASCII)
    if found is None or int(found[1]) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 500MB, 5GB or 2GiB")
    return int(found[1]) * _UNITS[(found[2] or "").upper()]


def overrides(pairs: Sequence[str], option: str = "--set") -> dict[str, Any]:
    """Read ``FIELD=VALUE`` pairs; values are YAML.

    Raises:
        ConfigError: a pair has no ``=`` or its value is no YAML.
    """
    if not pairs:
        return {}
    from panovlm.config.yaml_text import parse_yaml

    found: dict[str, Any] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name.strip():
            raise ConfigError(f"{option} {pair}: FIELD=VALUE was expected.")
        found[name.strip()], _ = parse_yaml(value, f"{option} {name.strip()}")
    return found


def about(path: Path, reason: str) -> str:
    """Return a reason on one line with the file that it is about, which many name themselves."""
    line = " ".join(reason.split())
    return line if line.startswith(str(path)) else f"{path}: {line}"


def device(name: str) -> str:
    """Return the device to use; ``auto`` takes an accelerator if there is one.

    Raises:
        ConfigError: the device does not exist.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device {name}: {reason}. Use cpu, or auto.") from error
    return name


def dtype(name: str | None) -> Any:
    """Return torch's type of that name (``None``: as in the file)."""
    import torch

    return None if name is None else getattr(torch, name)
