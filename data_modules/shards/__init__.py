"""Shard folders: what lies on a disk or in a store, how it is written, read, checked and shown."""
