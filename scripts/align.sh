#!/bin/sh
# Stage 1, alignment: the connector learns to speak to a language model that stays as it is.
#   scripts/align.sh RECIPE [key=value ...]
exec "$(dirname "$0")/stage.sh" align "$@"
