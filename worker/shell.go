package worker

import "time"

// ShellRules say whether people may open shells in the boxes of sessions.
type ShellRules struct {
	Allow bool
	Max   int           // shells open at a time; default 4
	For   time.Duration // the longest a shell may be open; default 1 h
	Idle  time.Duration // a shell in which nothing is typed for this long is ended; default 15 min
}
