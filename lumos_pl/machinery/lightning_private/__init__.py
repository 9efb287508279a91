"""All that is used of Lightning without being promised by it; tests/test_lightning_private.py says what moved.

Where a new version breaks one of these, these files are what there is to mend.
"""
