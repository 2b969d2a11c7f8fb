# SPDX-License-Identifier: Apache-2.0
"""Write the C99 program of a model: its graph as calls of ``csrc/runtime``."""
