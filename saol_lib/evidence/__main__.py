"""`python -m saol_lib.evidence` writes README's generated blocks and results/README.md anew; `--check` compares."""

import sys

from saol_lib.evidence.readme import main

sys.exit(main(check="--check" in sys.argv))
