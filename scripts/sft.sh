#!/bin/sh
# Stage 3, instruction tuning: conversations about pictures and short videos.
#   scripts/sft.sh RECIPE [key=value ...]
exec "$(dirname "$0")/stage.sh" sft "$@"
