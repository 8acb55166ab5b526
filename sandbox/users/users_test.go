package users

import (
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func TestUsersAreNeverOfTwoBoxes(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "run/users")
	users := Range{First: 5 * PerBox, Boxes: 8}
	// As of two workers on one host.
	var drivers []*Ranges
	for range 2 {
		r, err := Open(name, users)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		drivers = append(drivers, r)
	}
	var mu sync.Mutex
	taken := make(map[uint32]*Ranges)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			r := drivers[i%2]
			first, err := r.Take()
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if taken[first] != nil || first%PerBox != 0 || first < users.First || first >= users.First+8*PerBox {
				t.Errorf("%d is given out, after %v", first, taken)
			}
			taken[first] = r
		})
	}
	wg.Wait()
	for _, r := range drivers {
		if first, err := r.Take(); err == nil || !strings.Contains(err.Error(), "users for 8 boxes are taken") {
			t.Errorf("%d, %v", first, err)
		}
	}
	for first, r := range taken {
		if err := r.Give(first); err != nil {
			t.Fatal(err)
		}
		if again, err := drivers[0].Take(); err != nil || again != first {
			t.Errorf("%d, %v, want %d", again, err, first)
		}
	}
}

func TestUsersRefused(t *testing.T) {
	t.Parallel()
	for _, users := range []Range{
		{First: 1000, Boxes: 1}, {First: 0, Boxes: 5}, {First: PerBox}, {First: 0x7fff_0000, Boxes: 2}, {First: 0xffff_0000, Boxes: 1},
	} {
		if r, err := Open(filepath.Join(t.TempDir(), "users"), users); err == nil {
			r.Close()
			t.Errorf("%+v is taken", users)
		}
	}
	if err := Default.validate(); err != nil {
		t.Error(err)
	}
}
