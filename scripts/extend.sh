#!/bin/sh
# Stage 4, context extension: longer text, larger rotary base (rope_theta), adapters on the language model.
#   scripts/extend.sh RECIPE [key=value ...]
exec "$(dirname "$0")/stage.sh" extend "$@"
