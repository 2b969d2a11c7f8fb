# SPDX-License-Identifier: Apache-2.0
"""The demo: train a small network, compress it, and compare with other methods."""
