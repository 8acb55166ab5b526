package worker

// Live is what of a [Config] can be changed while a worker runs.
type Live struct {
	// Retired says that no more sessions are claimed. Those that are served are served to
	// their end; boxes are kept for nobody.
	Retired bool

	MaxSessions int
	PoolSize    int
	Keep        Keep
	Shell       ShellRules
}

// Apply changes a worker that runs. Sessions beyond a smaller MaxSessions are served to
// their end; shells that are not allowed any more are ended. Zero fields have the defaults of a [Config].
func (w *Worker) Apply(l Live) {
	if l.MaxSessions == 0 {
		l.MaxSessions = defaultMaxSessions
	}
	if l.Retired {
		l.MaxSessions, l.PoolSize, l.Keep.For = 0, 0, -1
	}
	w.places.resize(l.MaxSessions)
	w.mu.Lock()
	w.cfg.Shell = l.Shell
	boxes := w.boxes
	w.mu.Unlock()
	w.applyShells(l.Shell)
	if boxes == nil {
		return // Run has not begun
	}
	boxes.pool.resize(l.PoolSize)
	boxes.mu.Lock()
	boxes.rules = l.Keep.withDefaults()
	boxes.mu.Unlock()
}

// RenewPool replaces the boxes of the pool, which were started before something changed
// that boxes are started with.
func (w *Worker) RenewPool() {
	w.mu.Lock()
	boxes := w.boxes
	w.mu.Unlock()
	if boxes != nil {
		boxes.pool.renew()
	}
}

// GiveUpKept stops the box that was kept longest for a session which may come back,
// unless somebody uses it, and reports whether there was one.
func (w *Worker) GiveUpKept() bool {
	w.mu.Lock()
	boxes := w.boxes
	w.mu.Unlock()
	return boxes != nil && boxes.giveUp()
}

// RereadKey reads the environment key anew.
func (w *Worker) RereadKey() error {
	w.keys.mu.Lock()
	defer w.keys.mu.Unlock()
	_, err := w.keys.read()
	return err
}
