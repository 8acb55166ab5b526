//go:build linux && !race

package engine

import (
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"
	"gvisor.dev/gvisor/pkg/bpf"
	"gvisor.dev/gvisor/pkg/seccomp"
	"gvisor.dev/gvisor/pkg/seccomp/precompiledseccomp"
	"gvisor.dev/gvisor/pkg/sentry/platform"
	kernelfilter "gvisor.dev/gvisor/runsc/boot/filter"
	"gvisor.dev/gvisor/runsc/boot/filter/config"
	openerfilter "gvisor.dev/gvisor/runsc/fsgofer/filter"
	openerconfig "gvisor.dev/gvisor/runsc/fsgofer/filter/config"
)

// The filters are what gVisor would compile. After another version of it was taken, `go
// generate` makes them anew.
func TestFiltersAreThoseOfThisGVisor(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("there are none for this kind of machine")
	}
	useFilters()
	systrap, err := platform.Lookup("systrap")
	if err != nil {
		t.Fatal(err)
	}
	for _, direct := range []bool{false, true} {
		for _, info := range systrap.PrecompiledSeccompInfo() {
			options := config.Options{Platform: info, HostFilesystem: direct, ControllerFD: 17}
			program, ok := kernelfilter.GetPrecompiled(options.ConfigKey())
			if !ok {
				t.Errorf("there is no filter %s", options.ConfigKey())
				continue
			}
			allow, deny := config.Rules(options)
			compare(t, program, options.Vars(), deny, allow, config.SeccompOptions(options))
		}
		for _, files := range []bool{false, true} {
			options := openerconfig.Options{DirectFS: direct, LisafsNeeded: files}
			program, ok := openerfilter.GetPrecompiled(options.ConfigKey())
			if !ok {
				t.Errorf("there is no filter %s", options.ConfigKey())
				continue
			}
			allow, deny := openerconfig.Rules(options)
			compare(t, program, options.Vars(), deny, allow, seccomp.ProgramOptions{})
		}
	}
}

// compare compiles a filter as gVisor does, and compares it with one that was.
func compare(t *testing.T, program precompiledseccomp.Program, vars precompiledseccomp.Values, deny, allow seccomp.SyscallRules, options seccomp.ProgramOptions) {
	t.Helper()
	got, err := program.RenderInstructions(vars)
	if err != nil {
		t.Errorf("%s: %v", program.Name, err)
		return
	}
	fresh := seccomp.Program{
		RuleSets: []seccomp.RuleSet{{Rules: deny}, {Rules: allow, Action: seccomp.Allow}},
		Options:  options,
	}
	want, _, err := fresh.Build()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]bpf.Instruction(want), []bpf.Instruction(got)); diff != "" {
		t.Errorf("%s is not what it would be now; run `go generate ./sandbox/gvisor/engine`:\n%.500s", program.Name, diff)
	}
}
