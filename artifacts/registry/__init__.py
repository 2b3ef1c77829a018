"""The mutable part: which digest each stage of each model points to, who may change it, and what
nothing needs any more."""
