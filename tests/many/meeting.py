"""One of several processes that only meet and exchange values: what the tests of lost ranks watch.

python meeting.py HOW SECONDS     HOW: go on for SECONDS, or let rank 1 `raise` or `leave`
"""

from __future__ import annotations

import faulthandler
import os
import sys
import time

from tunewright.core import launched
from tunewright.core.errors import TunewrightError, UsageError, problem
from tunewright.engine import ranks


def main(how: str, seconds: float) -> int:
    place = launched.here()
    assert place is not None
    try:
        with ranks.joined(place, "cpu", 3.0) as team:
            print("met", os.getpid(), flush=True)
            end = time.monotonic() + seconds
            while team.first(time.monotonic) < end:
                if place.rank == 1 and how == "raise":
                    raise UsageError(problem("E-RUN-02", "/some/where"))
                if place.rank == 1 and how == "memory":
                    raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
                if place.rank == 1 and how == "leave":
                    os._exit(9)
                assert team.gather(place.rank) == list(range(team.world))
                time.sleep(0.05)
            ranks.part()
    except TunewrightError as e:
        print(e.text(), flush=True)
        return e.exit_code
    except RuntimeError as e:
        print(e, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    faulthandler.dump_traceback_later(60, exit=True)
    code = main(sys.argv[1], float(sys.argv[2]))
    sys.stdout.flush()
    os._exit(code)
