#!/bin/sh
exec "$(dirname "$0")/weft" docker-opts "$@"
