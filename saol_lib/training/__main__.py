"""`torchrun ... -m saol_lib.training.loop CONFIG.json [RESULTS]`: train one run, on one or many machines."""

import json
import sys
from pathlib import Path

from saol_lib.training.config import RunConfig
from saol_lib.training.loop import Busy, train

values, *where = sys.argv[1:]
try:
    train(RunConfig.of(**json.loads(Path(values).read_text())), *where)
except (ValueError, OSError, ArithmeticError, Busy) as error:
    sys.exit(str(error))
