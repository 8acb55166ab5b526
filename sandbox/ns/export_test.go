package ns

// Tag is the name of the driver at dir on the host.
func Tag(dir string) string { return tagOf(dir) }

// Processes are all those of the driver's live boxes, by their ids on the host.
func Processes(d *Driver) []int {
	d.host.mu.Lock()
	defer d.host.mu.Unlock()
	var all []int
	for pid := range d.host.pids {
		for list := []int{pid}; len(list) > 0; list = list[1:] {
			list = append(list, children(list[0])...)
			all = append(all, list[0])
		}
	}
	return all
}
