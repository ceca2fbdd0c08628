"""`python -m flashquant`."""

import sys

from flashquant.cli import main

sys.exit(main())
