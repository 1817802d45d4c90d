"""Annotated videos as training conversations."""
