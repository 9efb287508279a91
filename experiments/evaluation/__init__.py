"""Evaluation: what a trained model is worth, on the same ground for all models; `lumos eval`.

A measure is named PART/ROW/COLUMN, such as `loss/tube_0.7/frame_3` or `fidelity/heldout/joint`.
"""
