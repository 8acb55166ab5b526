package telemetry

import (
	"runtime"
	"runtime/debug"
	"time"
)

// A Build is what the Go toolchain recorded about this binary.
type Build struct {
	Version  string    `json:"version"`  // of the module; "devel" for a build outside a repository
	Revision string    `json:"revision"` // of the repository; may be empty
	Modified bool      `json:"modified"` // the tree had uncommitted changes
	Time     time.Time `json:"time,omitzero"`
	Go       string    `json:"go"`
	Platform string    `json:"platform"`
}

// ReadBuild returns the facts of the running binary.
func ReadBuild() Build {
	b := Build{Version: "devel", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		b.Version = v
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Revision = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		case "vcs.time":
			b.Time, _ = time.Parse(time.RFC3339, s.Value) // what the toolchain wrote, or left out
		}
	}
	return b
}
