"""`python -m saol_lib.evidence.claims`: see `saol_lib.evidence.claims`."""

import sys

from saol_lib.evidence.claims import main

sys.exit(main(check="--check" in sys.argv))
