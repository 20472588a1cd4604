"""Numbers by which compiled scans compute e**x and log(1 + e**x) to the last bits of float32."""

from __future__ import annotations

LOG2_E = 1.4426950408889634
LN_2 = 0.6931471805599453
LN_2_HIGH = 0.693359375
"""ln 2 to 9 bits, so that its multiples by exponents are exact; the rest follows."""
LN_2_LOW = -2.12194440e-4
ARTANH = (0.3333320814, 0.2001076365, 0.1400090215, 0.1400599603)
"""artanh(s) / s - 1 in powers of s**2, from the first, fitted on [0, 1/9] (to 4e-9)."""
