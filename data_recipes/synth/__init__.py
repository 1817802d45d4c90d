"""Worlds whose truth is known: shapes in motion (for `nano`) and pictures joined into clips (for `smol`)."""
