package cli

import (
	"os"
	"path/filepath"
	"testing"

	fieldwork "github.com/bailey-platform/bailey/field"
)

// The file that errors speak of was in the repository, and not with the program.
func TestWorkerPrintsTheDocumentedExample(t *testing.T) {
	t.Parallel()
	var r testRun
	if code := r.run(t.Context(), "worker", "--example"); code != 0 {
		t.Fatalf("exit %d: %s", code, &r.stderr)
	}
	documented, err := os.ReadFile("../docs/worker.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if r.stdout.String() != string(documented) {
		t.Error("it is another one than that in docs")
	}
	file := filepath.Join(t.TempDir(), "worker.yaml")
	if err := os.WriteFile(file, r.stdout.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := fieldwork.Load(file); err != nil {
		t.Error(err)
	}
}
