# SPDX-License-Identifier: Apache-2.0
"""A folder per operator."""
