"""Small ray-cast 360-degree rooms with questions whose answers are known.

``scene`` draws what stands where, ``render`` ray-casts it into an equirectangular picture,
``questions`` asks about it, ``write`` puts pictures and tables on disk. Everything follows from
a seed, so that anybody can make the same data without a download.
"""

from __future__ import annotations

from panovlm.data.synthetic.write import write_scenes

__all__ = ["write_scenes"]
