#!/bin/sh
# Prints the tests of the official Go SDK's first generation: those of the second in the
# file named, or sdkv2_test.go, with the names of the first. `go generate` keeps them in
# files beside those.
from=${1:-sdkv2_test.go}
echo "// Code generated from $from by sdkv1.sh; DO NOT EDIT."
echo
sed -e '/^\/\/go:generate/d' -e 's,anthropic-sdk-go/v2,anthropic-sdk-go,' -e 's/V2/V1/g' "$from"
