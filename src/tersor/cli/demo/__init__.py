# SPDX-License-Identifier: Apache-2.0
"""The demo: a network that is trained and compressed here, and a pretrained sentence encoder."""
