"""Data: one record (`sample`), sources that are fetched and checked, and worlds made by code (`synth`)."""
