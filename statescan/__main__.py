"""``python -m statescan`` is the command ``statescan``."""

import sys

from statescan.cli import main

sys.exit(main())
