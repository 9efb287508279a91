"""The fault campaign, `make faults`: what must never happen, tried with seeded faults on the real code, and counted."""
