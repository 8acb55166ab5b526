//go:build !cgo || race || slim

package main

// rerunStatic does nothing: this program is static, or holds no gVisor.
func rerunStatic() {}
