package field

import (
	"go.yaml.in/yaml/v3"

	"github.com/bailey-platform/bailey/egress"
)

// A Config is worker.yaml. docs/worker.yaml is an example with every setting. Paths
// that are not absolute count from the directory of the file.
type Config struct {
	Server   Server `yaml:"server"`
	WorkerID string `yaml:"worker-id"` // default: the host's name and a random suffix

	Data        string   `yaml:"data"`         // the worker's own directory; default bailey-worker
	WorkDir     string   `yaml:"work-dir"`     // of the sessions' work folders; default within data
	DiskReserve Size     `yaml:"disk-reserve"` // of the disks of both; see worker.Config
	Listen      string   `yaml:"listen"`       // for /healthz, /readyz and /metrics; empty for none
	Drain       Duration `yaml:"drain"`        // for calls under way once the worker is to stop; default 30s
	Audit       Audit    `yaml:"audit"`

	// What holds for each environment that says nothing else.
	Settings `yaml:",inline"`

	Environments []Environment `yaml:"environments"`

	// Where it was written, for what is wrong with it; nil and empty without a file.
	root *yaml.Node
	path string
}

// Server is the plane.
type Server struct {
	BaseURL string `yaml:"base-url"`
}

// Audit says where the audit record goes: to audit.jsonl in the data directory, and to
// what else is listed.
type Audit struct {
	Input     string   `yaml:"input"`     // what is kept of tool inputs: hash, the default, or text
	Sinks     []string `yaml:"sinks"`     // see sink.Open
	Retention Duration `yaml:"retention"` // how old a record gets before it is removed; 0 keeps all
}

// An Environment is one that this worker serves. What it says of the settings replaces,
// one by one, what the file says for all.
type Environment struct {
	ID      string `yaml:"id"`
	KeyFile string `yaml:"key-file"` // holds the environment key; read again when it is refused
	KeyEnv  string `yaml:"key-env"`  // or the variable that does

	Settings `yaml:",inline"`

	// Key is the key itself. It cannot be in a file.
	Key string `yaml:"-"`

	gone bool // from the file, while the worker runs; it finishes what it has
}

// Settings are what may differ from one environment to another.
type Settings struct {
	Sandbox     Sandbox      `yaml:"sandbox"`
	Sessions    Sessions     `yaml:"sessions"`
	Pool        Pool         `yaml:"pool"`
	Keep        Keep         `yaml:"keep"`
	Network     Network      `yaml:"network"`
	Credentials []Credential `yaml:"credentials"`
	Shell       Shell        `yaml:"shell"`
}

// Sandbox says what the boxes are.
type Sandbox struct {
	Backend  string   `yaml:"backend"`  // default: the strongest of this build
	Fallback []string `yaml:"fallback"` // tried in this order where Backend cannot be had; default none

	Image   string `yaml:"image"`   // see sandbox.Spec; default the host's own programs
	Engine  string `yaml:"engine"`  // oci: the runtime's path; docker, podman: the daemon's socket
	Runtime string `yaml:"runtime"` // docker, podman: the runtime to ask the daemon for
	// For oci, a runtime with a defect that a box could leave through, by its version: for
	// distributions that mended it under the old one.
	AllowOldEngine bool `yaml:"allow-old-engine"`

	Devices []string          `yaml:"devices"` // by their CDI names
	Env     map[string]string `yaml:"env"`     // of the box; the model can read it
	Setup   string            `yaml:"setup"`   // bash, run in every new box before its first call
	Eager   bool              `yaml:"eager"`   // start a box when a session is claimed

	Limits  Limits  `yaml:"limits"`
	Require Require `yaml:"require"`
}

// Limits bound a box; see sandbox.Limits.
type Limits struct {
	Memory     Size     `yaml:"memory"`
	CPUs       float64  `yaml:"cpus"`
	Processes  int      `yaml:"processes"`
	Disk       Size     `yaml:"disk"`
	Lifetime   Duration `yaml:"lifetime"`
	WorkFolder Size     `yaml:"work-folder"` // see worker.Config.FolderMax
}

// Require is what a backend must be able to do here; see sandbox.Requirements.
type Require struct {
	Isolation  string   `yaml:"isolation"`
	Limits     []string `yaml:"limits"`
	Network    bool     `yaml:"network"`
	Freeze     bool     `yaml:"freeze"`
	Checkpoint bool     `yaml:"checkpoint"`
	GPU        bool     `yaml:"gpu"`
}

// Sessions bound what is served, and for how long.
type Sessions struct {
	Max         int      `yaml:"max"`          // at a time; default 16
	Idle        Duration `yaml:"idle"`         // how long one with nothing to do keeps its place; default 1m
	ToolTimeout Duration `yaml:"tool-timeout"` // of one call; default 2m
}

// Pool is how many boxes are ready for sessions to come.
type Pool struct {
	Size int `yaml:"size"`
}

// Keep is what becomes of boxes that nothing uses; see worker.Keep.
type Keep struct {
	FreezeAfter Duration `yaml:"freeze-after"`
	For         Duration `yaml:"for"`
	Max         int      `yaml:"max"`
	Memory      Size     `yaml:"memory"`
}

// Network is what boxes reach.
type Network struct {
	// Policy has a third mode here, none: boxes have no network at all. It is the default.
	egress.Policy `yaml:",inline"`

	// ProxyEnv names the variable that holds the URL of a proxy which connections are
	// made through; see egress.ParseProxy.
	ProxyEnv string `yaml:"proxy-env"`
}

// networkNone is the mode without a network.
const networkNone = egress.Mode("none")

func (n Network) none() bool { return n.Mode == "" || n.Mode == networkNone }

// A Credential is a secret that boxes may use and never see: in a box it is a
// placeholder, which becomes the value in requests over TLS to its hosts.
type Credential struct {
	Name  string   `yaml:"name"`  // of the variable in the box
	Hosts []string `yaml:"hosts"` // patterns, as in network rules
	Where []string `yaml:"where"` // header, body, query; default header

	From    Source   `yaml:"from"`
	Refresh Duration `yaml:"refresh"` // how long a value is used before it is asked for again; default 1m
}

// A Source is where a secret comes from: one of these. The file has no place for the
// secret itself.
type Source struct {
	Env     string   `yaml:"env"`     // a variable of the worker's environment
	File    string   `yaml:"file"`    // a file, white space around the secret ignored
	Command []string `yaml:"command"` // a program and its arguments, which prints it
}

// Shell says whether people may open shells in boxes; see worker.ShellRules.
type Shell struct {
	Allow      bool     `yaml:"allow"`
	Max        int      `yaml:"max"`
	For        Duration `yaml:"for"`
	Idle       Duration `yaml:"idle"`
	Transcript bool     `yaml:"transcript"`
}
