#!/bin/sh
# Stage 2, pre-training: language model and connector on interleaved and captioned data, eyes frozen.
#   scripts/pretrain.sh RECIPE [key=value ...]
exec "$(dirname "$0")/stage.sh" pretrain "$@"
