"""Readers: files of conversations on disk -> `Sample`. One file per format."""
