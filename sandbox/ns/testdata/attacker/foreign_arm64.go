package main

var attacksHere []attack

// foreign would need a program of 32 bits.
func foreign() { select {} }
