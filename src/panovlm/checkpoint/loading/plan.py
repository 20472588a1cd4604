"""The proof: every key and shape of the file against the model, before any weight is read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from panovlm.errors import CheckpointError

Shape = tuple[int, ...]
SHOWN = 8


@dataclass(frozen=True)
class Proof:
    """The comparison of a file with the model that was built for it.

    Attributes:
        matched: names that are in both with equal shapes.
        ties: names of the model that share the tensor of another name.
        tied: those of them that the file does not hold.
        borrowed: model name → shape, absent from the file and to be taken from a named model.
        missing: model name → shape, absent from the file.
        unexpected: file name → shape, without a place in the model.
        mismatched: name → (shape in the file, shape in the model).
        mistyped: name → type in the file, where the model computes in floating point.
    """

    matched: tuple[str, ...]
    ties: Mapping[str, str]
    tied: Mapping[str, str]
    borrowed: Mapping[str, Shape]
    missing: Mapping[str, Shape]
    unexpected: Mapping[str, Shape]
    mismatched: Mapping[str, tuple[Shape, Shape]]
    mistyped: Mapping[str, str]

    @property
    def holds(self) -> bool:
        """Whether every tensor has its place and every place its tensor."""
        return not (self.missing or self.unexpected or self.mismatched or self.mistyped)

    def raise_failure(self, path: Path) -> None:
        """Report every difference by component.

        Raises:
            CheckpointError: there is one.
        """
        if self.holds:
            return
        lines: dict[str, list[str]] = defaultdict(list)
        for name, (stored, built) in self.mismatched.items():
            lines[_component(name)].append(
                f"{name}: {list(stored)} in the checkpoint, {list(built)} in the model"
            )
        for name, shape in self.missing.items():
            lines[_component(name)].append(f"{name} {list(shape)}: absent from the checkpoint")
        for name, shape in self.unexpected.items():
            lines[_component(name)].append(f"{name} {list(shape)}: no place in the model")
        for name, dtype in self.mistyped.items():
            lines[_component(name)].append(
                f"{name}: {dtype} in the checkpoint, a floating-point type was expected (quantised "
                "weights are not read)"
            )
        text: list[str] = []
        for component, problems in lines.items():
            text.append(f"  {component}: {len(problems)} tensor(s)")
            text += [f"    {problem}" for problem in problems[:SHOWN]]
            if len(problems) > SHOWN:
                text.append(f"    ... and {len(problems) - SHOWN} more")
        raise CheckpointError(
            f"{path} does not fit the model that its configuration describes:\n"
            + "\n".join(text)
            + f"\nNo weight was read. `panovlm inspect {path}` shows where each setting came from; "
            "--set FIELD=VALUE overrides one."
        )


def prove(
    stored: Mapping[str, Shape],
    built: Mapping[str, Shape],
    tied: Mapping[str, str],
    elsewhere: Collection[str] = (),
    mistyped: Mapping[str, str] | None = None,
) -> Proof:
    """Compare names and shapes.

    Args:
        stored: the file's tensors under the model's names.
        built: the model's state dict.
        tied: names of the state dict that share the tensor of another name.
        elsewhere: beginnings of the names of backbones whose weights may be absent.
        mistyped: tensors of the model whose type in the file it cannot compute with.
    """
    absent = {
        name: shape
        for name, shape in built.items()
        if name not in stored and tied.get(name) not in stored
    }
    borrowed = {n: s for n, s in absent.items() if n.startswith(tuple(elsewhere)) and _is_own(n)}
    return Proof(
        matched=tuple(n for n in built if n in stored and stored[n] == built[n]),
        ties=tied,
        tied={name: source for name, source in tied.items() if name not in stored},
        borrowed=borrowed,
        missing={name: shape for name, shape in absent.items() if name not in borrowed},
        unexpected={n: shape for n, shape in stored.items() if n not in built},
        mismatched={
            n: (stored[n], built[n]) for n in built if n in stored and stored[n] != built[n]
        },
        mistyped=mistyped or {},
    )


def _is_own(name: str) -> bool:
    """Tell whether a tensor is a backbone's own, not one that adapters add to it."""
    return ".lora_" not in name


def _component(name: str) -> str:
    return name.split(".", 1)[0]
