package boxinit

import (
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/sandbox/lockdown"
)

// full has a value in every field there is, so that none is forgotten.
func full() Plan {
	return Plan{
		Command: []string{"/a", "", "-b"}, Env: []string{"C=d"}, Dir: "/e", User: 7, Change: true, Hostname: "f",
		Root: Root{
			Size: 1 << 40, Files: 300, Shared: 5,
			Layers:  []Mount{{Source: "/g", Target: "/h", File: true, Write: true}},
			Mounts:  []Mount{{Source: "/i", Target: "/p", File: true, Write: true}, {Target: "/j"}},
			Devices: []Device{{Source: "/k", Target: "/l"}},
			Texts:   map[string]string{"m": "n\n", "o": ""},
		},
		Limits:   Limits{Processes: 8, OpenFiles: 9},
		Filter:   lockdown.Filter{0, 1, 255},
		Landlock: lockdown.Landlock{Paths: map[string]lockdown.Access{"/": lockdown.Read | lockdown.Control}, NoTCP: true},
	}
}

func TestPlanComesThrough(t *testing.T) {
	t.Parallel()
	plan := full()
	unset(t, reflect.ValueOf(plan), "Plan")
	got, err := Decode(plan.Encode())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(plan, got); diff != "" {
		t.Error(diff)
	}
}

// unset reports fields of a structure that full should fill and does not.
func unset(t *testing.T, v reflect.Value, name string) {
	t.Helper()
	if v.IsZero() {
		t.Errorf("%s is not tried", name)
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			unset(t, v.Field(i), name+"."+v.Type().Field(i).Name)
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Struct {
			unset(t, v.Index(0), name+"[0]")
		}
	}
}

func TestPlanCutShort(t *testing.T) {
	t.Parallel()
	plan := full()
	data := plan.Encode()
	for n := range data {
		if _, err := Decode(data[:n]); err == nil {
			t.Errorf("%d bytes of %d are a plan", n, len(data))
		}
	}
	if _, err := Decode(append(data, 0)); err == nil {
		t.Error("with a byte more it is a plan, too")
	}
}
