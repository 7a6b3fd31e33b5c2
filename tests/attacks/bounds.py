"""How many random inputs the attack tests try, and the bounds that every refusal respects.

CI tries a few; XLSTM_ATTACKS=100 in the environment multiplies their number by 100.
"""

import os
import time

from bench.peak import peak_from_now, resident

ERRORS = (ValueError, TypeError, OSError)  # what bad input may raise; everything else is a defect
MESSAGE = 2000  # characters of an error message at most
SECONDS = 10.0  # of the processor, for a file of less than 10 MB; what takes longest takes 0.3
SPARE = 100 << 20  # bytes beyond ten times the size of the file


def examples(count):
    """`count` inputs in CI, more or fewer by XLSTM_ATTACKS."""
    return max(1, round(count * float(os.environ.get("XLSTM_ATTACKS", "1"))))


def refusal(call, size=0):
    """Run a call on input of `size` bytes: the error that it raised, None if it accepted the input.

    Any other error propagates. The time, the memory and the length of the message are asserted.
    """
    found = None
    memory = peak_from_now()
    start = time.process_time()  # which does not count the work of others on the same cores
    try:
        call()
    except ERRORS as error:
        found = error
    seconds = time.process_time() - start
    assert len(str(found)) <= MESSAGE, (
        f"a message of {len(str(found))} characters: {str(found)[:300]}"
    )
    assert seconds < SECONDS, f"{seconds:.1f} s"
    if memory is not None:
        grown = resident("VmHWM") - memory
        assert grown <= 10 * size + SPARE, f"{grown / 1e6:.0f} MB for {size} bytes"
    return found
