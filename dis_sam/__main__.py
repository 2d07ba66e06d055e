"""``python -m dis_sam`` is ``dis-sam``."""

from __future__ import annotations

import sys

from dis_sam.cli import main

if __name__ == "__main__":
    sys.exit(main())
