# SPDX-License-Identifier: Apache-2.0
"""``python -m avsmodel``, the command line."""

import sys

from avsmodel.cli import main

if __name__ == "__main__":
    sys.exit(main())
