# SPDX-License-Identifier: Apache-2.0
"""What all operators stand on: specifications, registration, and the choice of who computes."""
