#!/bin/sh
# Stage 5, long instruction tuning: conversations about long videos.
#   scripts/long.sh RECIPE [key=value ...]
exec "$(dirname "$0")/stage.sh" long "$@"
