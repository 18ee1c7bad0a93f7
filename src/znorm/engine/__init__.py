"""The engine of a step: gradients are checked, measured, decided on, written, and reported.

`validate` checks gradients against a layout, `decide` is arithmetic on moments, `execute` reads and
writes gradients with whatever kernels serve them, `receipts` sums up what was done.
"""
