package main

import (
	"errors"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	much     = 400 << 20 // bytes
	lingered = 300 * time.Millisecond
)

// hoard takes much memory of some kind, or maps the file of that name, and keeps it for
// a while.
func hoard(kind string) error {
	switch kind {
	case "shared":
		return fill(unix.Mmap(-1, 0, much, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS))
	case "file":
		fd, err := unix.MemfdCreate("hoard", 0)
		if err != nil {
			return err
		}
		for range much >> 20 {
			if _, err := unix.Write(fd, make([]byte, 1<<20)); err != nil {
				return err
			}
		}
		time.Sleep(lingered)
		return nil
	case "segment":
		id, err := unix.SysvShmGet(unix.IPC_PRIVATE, much, unix.IPC_CREAT|0o600)
		if err != nil {
			return err
		}
		return fill(unix.SysvShmAttach(id, 0, 0))
	case "page":
		_, err := unix.SysvShmGet(unix.IPC_PRIVATE, os.Getpagesize(), unix.IPC_CREAT|0o600)
		return err
	case "CPUs":
		var all unix.CPUSet
		for cpu := range int(unsafe.Sizeof(all)) * 8 {
			all.Set(cpu)
		}
		return unix.SchedSetaffinity(0, &all)
	}
	fd, err := unix.Open(kind, unix.O_RDWR, 0)
	if err != nil {
		return err
	}
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return err
	}
	return fill(unix.Mmap(fd, 0, int(stat.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED))
}

func fill(memory []byte, err error) error {
	for i := 0; i < len(memory); i += 4096 {
		memory[i] = 1
	}
	if len(memory) > 0 {
		time.Sleep(lingered)
	}
	if err == nil && len(memory) == 0 {
		err = errors.New("there is nothing to fill")
	}
	return err
}
