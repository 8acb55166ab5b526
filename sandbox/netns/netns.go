// Package netns makes network namespaces out of which there are exactly two ways: one
// socket for everything that goes by TCP, and one for DNS ([sandbox.Exits]). Both are
// open in this process, so whoever serves them decides what leaves a box, and which
// box it was is plain from the socket. Nothing changes in the host's own network: no
// interface, no address, no rule, no setting. A namespace goes with its last process
// and its last socket.
//
//   - [Jail] does it to the namespace that the calling thread is in.
//   - [Join] does it to the namespace of a process that something else has started.
//   - [Wrap] starts a program in a new one that has a network card of its own, for
//     programs that bring a network stack along, as gVisor does. [Pair] makes the same
//     without starting anything.
//
// Wrap, and Join where user namespaces are involved, need a process of their own for
// it; see [RunIfRole].
//
// The package must not know what may pass through the exits, or what runs in the
// namespaces. Start reading at [Jail].
package netns

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox"
)

// Jail makes the network namespace of the calling thread one whose only ways out are
// the exits it returns: to the box, every address is its own, and TCP to any of them
// but its loopback arrives at one socket, UDP to port 53 of any at another. The rest
// is refused at once, and what a box sends to its own loopback stays there.
//
// The thread must be locked, and have CAP_NET_ADMIN over a namespace in which no
// interface is up yet but the loopback: that is refused, as it would be somebody's.
// What runs there afterwards must not have CAP_NET_ADMIN, nor CAP_NET_RAW.
func Jail() (sandbox.Exits, error) {
	if err := fresh(); err != nil {
		return sandbox.Exits{}, err
	}
	loop, err := openRoutes()
	if err != nil {
		return sandbox.Exits{}, err
	}
	defer loop.close()
	v6, err := loop.claimEveryAddress()
	if err != nil {
		return sandbox.Exits{}, fmt.Errorf("route every address to the box itself: %w", err)
	}
	return leave(v6, hookOutput)
}

// ClaimEveryAddress makes the network namespace of the calling thread the place where
// every address leads, with nothing redirected: whatever listens there plays all hosts
// that there are. It is for laboratories and tests, and refused where [Jail] is.
func ClaimEveryAddress() error {
	if err := fresh(); err != nil {
		return err
	}
	loop, err := openRoutes()
	if err != nil {
		return err
	}
	defer loop.close()
	if _, err := loop.claimEveryAddress(); err != nil {
		return fmt.Errorf("route every address to this namespace: %w", err)
	}
	return nil
}

// leave opens the exits in the namespace of the calling thread, and has what passes
// the hook sent there.
func leave(v6 bool, hook hook) (sandbox.Exits, error) {
	exits, err := listen(v6)
	if err != nil {
		return sandbox.Exits{}, fmt.Errorf("open the exits: %w", err)
	}
	if err := redirect(hook); err != nil {
		exits.Close()
		return sandbox.Exits{}, fmt.Errorf("redirect to the exits: %w; the kernel needs nf_tables with nft_redir, nft_ct and nft_reject_inet", err)
	}
	return exits, nil
}

// Pair makes two network namespaces with a cable between them, and returns one as a
// file, and the exits that everything that leaves it by its network card arrives at:
// as with [Jail], but that what is in the namespace may have every right over it. The
// other namespace, with the exits, is out of its reach.
//
// The process needs CAP_SYS_ADMIN and CAP_NET_ADMIN. The caller closes both results.
func Pair() (box *os.File, exits sandbox.Exits, err error) {
	err = apart(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		box, exits, err = pair()
		return err
	})
	return box, exits, err
}

// apart runs f on a thread of its own, which f may move to another network namespace.
func apart(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// By the first one others know where the process is.
			defer runtime.UnlockOSThread()
			done <- apart(f)
			return
		}
		home, err := os.Open(ownNetwork)
		if err != nil {
			done <- err
			return
		}
		defer home.Close()
		err = f()
		// A thread that cannot go home again must not run anything else: it stays locked
		// and ends here. To leave all of them so would not do, as the first one of the
		// process would not end, and keep the namespace that it is in.
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// ownNetwork is the network namespace of the calling thread.
const ownNetwork = "/proc/thread-self/ns/net"

// pair makes a second namespace for the exits, and connects to it the one that the
// calling thread is in, and is in again when it returns.
func pair() (box *os.File, exits sandbox.Exits, err error) {
	box, err = os.Open(ownNetwork)
	if err != nil {
		return nil, sandbox.Exits{}, err
	}
	defer func() {
		if err != nil {
			box.Close()
		}
	}()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, sandbox.Exits{}, fmt.Errorf("make a network namespace: %w", err)
	}
	far, err := openRoutes()
	if err != nil {
		return nil, sandbox.Exits{}, err
	}
	defer far.close()
	v6, err := far.claimEveryAddress()
	if err != nil {
		return nil, sandbox.Exits{}, fmt.Errorf("route every address to the exits: %w", err)
	}
	if err := far.cable(box); err != nil {
		return nil, sandbox.Exits{}, fmt.Errorf("connect two network namespaces: %w", err)
	}
	if err := far.plugIn(farName, farIPv4, farIPv6); err != nil {
		return nil, sandbox.Exits{}, fmt.Errorf("set up the exits' end: %w", err)
	}
	exits, err = leave(v6, hookPrerouting)
	if err != nil {
		return nil, sandbox.Exits{}, err
	}
	if err = unix.Setns(int(box.Fd()), unix.CLONE_NEWNET); err == nil {
		err = boxEnd()
	}
	if err != nil {
		exits.Close()
		return nil, sandbox.Exits{}, fmt.Errorf("set up the box's end: %w", err)
	}
	return box, exits, nil
}

// boxEnd sets up the box's end of a pair, in whose namespace the calling thread is.
func boxEnd() error {
	near, err := openRoutes()
	if err != nil {
		return err
	}
	defer near.close()
	if err := near.loopbackUp(); err != nil {
		return err
	}
	if err := near.plugIn(boxName, boxIPv4, boxIPv6); err != nil {
		return err
	}
	return near.defaultRoutes()
}
