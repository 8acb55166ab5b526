package seccomp

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// A call that is named twice is decided by whichever rule a runtime looks at first.
func TestEachCallIsNamedOnce(t *testing.T) {
	t.Parallel()
	names := strings.Fields(allowed + " " + forbidden + " " + absent + " clone socket personality")
	slices.Sort(names)
	for i, name := range names[1:] {
		if name == names[i] {
			t.Error(name)
		}
	}
}

func TestWhatBoxesNeverHave(t *testing.T) {
	t.Parallel()
	f := Filter()
	if f.DefaultAction != specs.ActErrno || f.DefaultErrnoRet == nil {
		t.Errorf("what is named nowhere: %s", f.DefaultAction)
	}
	for _, rule := range f.Syscalls {
		if rule.Action != specs.ActAllow {
			if rule.ErrnoRet == nil {
				t.Errorf("%v: no error is named, so a runtime chooses one", rule.Names)
			}
			continue
		}
		for _, name := range strings.Fields(`ptrace process_vm_readv io_uring_setup bpf keyctl unshare setns mount clone3 userfaultfd perf_event_open`) {
			if slices.Contains(rule.Names, name) {
				t.Error(name)
			}
		}
		if slices.Contains(rule.Names, "socket") && len(rule.Args) == 0 {
			t.Error("sockets of every family")
		}
	}
}

// What docker and podman decode has these names for them.
func TestForm(t *testing.T) {
	t.Parallel()
	data, err := json.Marshal(Filter())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"defaultAction":"SCMP_ACT_ERRNO"`, `"defaultErrnoRet":38`, `{"names":["clone3",`,
		`{"names":["socket"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"}]}`} {
		if !strings.Contains(string(data), want) {
			t.Errorf("no %s in %s", want, data)
		}
	}
}
