"""Doors and wires: all input and output with the world. Edges never import each other nor a stage."""
