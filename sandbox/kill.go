package sandbox

import "golang.org/x/sys/unix"

// Kill kills a process that is not our child if it is the one meant, which is asked once
// its number can come to mean no other. It reports whether it was; one that has ended by
// itself is none.
func Kill(pid int, meant func() bool) bool {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return meant() && unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) == nil
}
