//go:build linux && !race

// Package engine is gVisor as boxes need it: the subcommands that make one, and its
// system call filters ready to use. What gVisor has besides, for people and for other
// hosts of it, would more than double the program.
//
// The package must not know what starts it, or why. Start reading at [Main].
package engine

import (
	"runtime"
	"runtime/debug"

	"gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/runsc/cli"
	"gvisor.dev/gvisor/runsc/cmd"
	"gvisor.dev/gvisor/runsc/cmd/sentry/sentrycmd"
	"gvisor.dev/gvisor/runsc/cmd/util"
)

// Main is gVisor's command line, of which it knows `run` and `restore` and what these
// start. It does not return.
func Main() {
	collectLate()
	useFilters()
	// Otherwise a hundred lines are made up to be thrown away, at every start. Those of
	// --debug are written all the same.
	log.SetLevel(log.Warning)
	cli.Run(nil, map[util.SubCommand]string{
		new(cmd.Run):          "",
		new(cmd.Restore):      "",
		new(sentrycmd.Boot):   "",
		new(cmd.Gofer):        "",
		new(sentrycmd.Umount): "",
	}, nil)
}

// startPercent is how much garbage there may be, as for GOGC, until some is collected for
// the first time: enough for a start, so that it does not wait for that.
const startPercent = 200

// collectLate has the first collection come late, and those after it as usual.
func collectLate() {
	usual := debug.SetGCPercent(startPercent)
	// Whoever holds nothing of it is told of the first collection.
	runtime.AddCleanup(new(*int), func(percent int) { debug.SetGCPercent(percent) }, usual)
}
