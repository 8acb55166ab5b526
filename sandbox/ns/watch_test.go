package ns_test

import (
	"testing"

	"github.com/bailey-platform/bailey/sandbox"
)

// The tests of what is watched, or filtered, where there are no control groups to hold
// it, as for an ordinary user who was given none.
func TestNoMemoryIsOverlookedAsOrdinaryUser(t *testing.T) { asOrdinary(t, "TestNoMemoryIsOverlooked") }
func TestSharedMemoryCountsOnceAsOrdinaryUser(t *testing.T) {
	asOrdinary(t, "TestSharedMemoryCountsOnce")
}
func TestCPUsCannotBeHadBackAsOrdinaryUser(t *testing.T) { asOrdinary(t, "TestCPUsCannotBeHadBack") }

// withoutHard skips a test where a limit is held by the kernel.
func withoutHard(t *testing.T, limit string) {
	t.Helper()
	needLauncher(t)
	report, err := open(t.TempDir()).Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if report.Limits[limit] == sandbox.Hard {
		t.Skipf("a control group holds %s here; the same test as an ordinary user is for where none does", limit)
	}
}

// Shared memory is memory, and what is nobody's there is none of.
func TestNoMemoryIsOverlooked(t *testing.T) {
	withoutHard(t, "memory")
	t.Parallel()
	for kind, want := range map[string]string{"file": "ENOSYS", "segment": "ENOMEM"} {
		_, run := attacked(t, open(t.TempDir()), func(spec *sandbox.Spec) { spec.Limits.MemoryBytes = 128 << 20 })
		if text, failed := run(attackerPath + " memory " + kind); !failed || text != want+"\n\n\nexit code: 1" {
			t.Errorf("%s: %q", kind, text)
		}
		must(t, run, attackerPath+" memory page")
	}
	spec := benchSpec(t)
	spec.Files = map[string]string{attackerPath: attackerFile()}
	spec.Command = []string{attackerPath, "memory", "shared"}
	spec.Limits.MemoryBytes = 128 << 20
	box, err := open(t.TempDir()).Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if exit := box.Wait(); exit.Cause != sandbox.CauseMemory {
		t.Errorf("with shared memory, the box ended so: %+v", exit)
	}
	if err := box.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

// What several processes have mapped is there once.
func TestSharedMemoryCountsOnce(t *testing.T) {
	withoutHard(t, "memory")
	t.Parallel()
	_, run := attacked(t, open(t.TempDir()), func(spec *sandbox.Spec) { spec.Limits.MemoryBytes = 256 << 20 })
	must(t, run, "head -c 50M /dev/zero >/dev/shm/all && for i in 1 2 3 4 5 6 7 8; do "+attackerPath+" memory /dev/shm/all & done; wait")
	must(t, run, "true") // the box lives
}

// What a box was put on, it stays on.
func TestCPUsCannotBeHadBack(t *testing.T) {
	withoutHard(t, "cpu")
	t.Parallel()
	_, run := attacked(t, open(t.TempDir()), func(spec *sandbox.Spec) { spec.Limits.CPUs = 1 })
	if text, failed := run(attackerPath + " memory CPUs"); !failed || text != "EPERM\n\n\nexit code: 1" {
		t.Error(text)
	}
	if text := must(t, run, "nproc"); text != "1" {
		t.Errorf("%s CPUs", text)
	}
}
