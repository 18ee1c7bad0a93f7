"""Training frameworks: a module for each, in the form that its users write.

Each imports its framework, and is imported by itself: ``import znorm.integrations.lightning``.
Where a framework needs no module, as accelerate, `docs/integrations.md` has the line to write.
"""
