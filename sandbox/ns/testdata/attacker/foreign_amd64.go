package main

import "golang.org/x/sys/unix"

var attacksHere = []attack{
	{"x32", 0x40000000 | unix.SYS_GETPID, args()},
	{"iopl", unix.SYS_IOPL, args(3)},
	{"ioperm", unix.SYS_IOPERM, args(0x80, 1, 1)},
	{"modify_ldt", unix.SYS_MODIFY_LDT, args(0, scratch, 16)},
	{"uselib", unix.SYS_USELIB, args(here)},
}

// foreign asks for getpid as programs of 32 bits do.
func foreign()
