# SPDX-License-Identifier: Apache-2.0
"""Name how much time is spent on a compression with data. Imported without torch, for options."""

from __future__ import annotations

from typing import Literal

Effort = Literal["fast", "balanced", "best"]
"""Calibration alone, one reconstruction too, or several."""
