package gateway

import (
	"testing"
	"time"
)

// Who takes a deadline away knows whether it had passed: a connection is either cut or
// used, and not used as it is cut.
func TestADeadlineIsClearedOrHasPassed(t *testing.T) {
	t.Parallel()
	s, cuts := newSweeper(), 0
	w := s.watch(func() { cuts++ })
	defer w.drop()
	later := func() { s.sweep(time.Now().Add(time.Hour).UnixNano()) }

	if w.clear() {
		t.Error("there is a deadline that nobody has set")
	}
	w.set(time.Second)
	if !w.clear() {
		t.Error("a deadline that was not swept has passed")
	}
	later()
	if cuts != 0 || w.late.Load() {
		t.Errorf("%d cuts at a deadline that was cleared", cuts)
	}
	s.sweep(time.Now().UnixNano())
	w.set(time.Second)
	later()
	if cuts != 1 || !w.late.Load() || w.clear() {
		t.Errorf("%d cuts at a deadline that has passed", cuts)
	}
	later()
	if cuts != 1 {
		t.Errorf("%d cuts at one deadline", cuts)
	}
}
