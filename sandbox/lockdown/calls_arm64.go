package lockdown

import "golang.org/x/sys/unix"

const architecture = unix.AUDIT_ARCH_AARCH64

// foreign is beyond every number: there is one set of calls.
const foreign = 1<<32 - 1

var ordinaryHere, ofFilesHere []uint32
