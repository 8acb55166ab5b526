//go:build pending

package main

// Libraries that packages under way are to use; each line moves out when its package
// imports it.
import (
	_ "github.com/hashicorp/yamux"
)
