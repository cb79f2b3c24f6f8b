"""`python -m CTMicroSRLib` is the `ctmicrosr` command."""

import sys

from CTMicroSRLib.cli import main

if __name__ == "__main__":
    sys.exit(main())
