package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bailey-platform/bailey/daemon"
)

func TestDoctorTriesTheVaultKey(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "vault.key")
	cfg := &daemon.Config{Data: filepath.Dir(file)}
	if f := checkVaultKey(t.Context(), cfg); f.Status != findingNote || !strings.Contains(f.Detail, "first start") {
		t.Errorf("without a key: %+v", f)
	}
	if err := os.WriteFile(file, []byte("no key"), 0o600); err != nil {
		t.Fatal(err)
	}
	if f := checkVaultKey(t.Context(), cfg); f.Status != findingFailed || f.Remedy == "" {
		t.Errorf("with half a key: %+v", f)
	}
}

func TestDoctorMentionsSmallUDPBuffers(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "rmem_max")
	for text, want := range map[string]int{"212992\n": 1, "7340032\n": 0, "much": 0} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := checkUDPBuffers(file); len(got) != want {
			t.Errorf("%q: %+v", text, got)
		}
	}
	if got := checkUDPBuffers(file + ".none"); len(got) != 0 {
		t.Errorf("%+v", got)
	}
}
