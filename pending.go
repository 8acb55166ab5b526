//go:build pending

package main

// Libraries that packages under way are to use; each line moves out when its package
// imports it.
import (
	_ "github.com/coreos/go-oidc/v3/oidc"
	_ "github.com/go-jose/go-jose/v4"
	_ "github.com/hashicorp/yamux"
	_ "github.com/quic-go/quic-go"
	_ "golang.org/x/oauth2"
	_ "golang.org/x/sync/singleflight"
)
