"""What only a GPU can tell, within minutes: see bench/gpu/__main__.py."""

import time

BEGUN = time.monotonic()  # before torch is imported, which takes its part of the time that is given
